"""Partitions: how labelled images are divided among simulated clients."""
