"""Decoding: image files become uint8 arrays, cached on disk."""
