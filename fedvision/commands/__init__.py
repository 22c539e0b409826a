"""Verbs of the command line that need more than a few lines, one module each with `add(verbs)`."""
