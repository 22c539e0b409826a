"""Heads in closed form: computed in one round from exact sums over frozen features."""
