"""Runs: the run folder, checkpoints, events and progress."""
