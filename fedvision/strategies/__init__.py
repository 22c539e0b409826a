"""Aggregation strategies: which clients work, what they are told, how their updates are combined."""
