"""Whether it reproduced: the report of scores, runs and mixes, and the model card that is written from it."""
