"""Exact and masked sums of what clients send."""
