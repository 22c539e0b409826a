"""Local training and evaluation: the one loop and what methods add to it."""
