"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): answers in two turns, each rated from 1 to 10 by a judge model.

No harness in the lock does it. lm-eval 0.4.11 has no such task, and its requests are made before any answer is known,
while a second turn holds the first answer. lighteval's task names one judge in its code and counts a reply that it
cannot read as 0; FastChat, the original, brings a serving stack of its own.
"""
