"""Vectorized training: K clients in one step."""
