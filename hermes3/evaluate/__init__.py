"""Running lm-eval over a suite, and choosing an epoch by what it measured."""
