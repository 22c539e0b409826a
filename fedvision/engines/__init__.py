"""Engines: each is a Flower Grid that carries messages to simulated clients."""
