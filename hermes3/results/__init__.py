"""Results of evaluations: read from lm-eval's files, grouped as suites say, compared where they may be."""
