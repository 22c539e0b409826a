"""Engines: each is a Flower Grid that carries messages to clients, and nothing more."""
