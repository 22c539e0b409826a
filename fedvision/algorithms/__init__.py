"""Federated algorithms: who takes part, what is sent to each, how updates become the next model."""
