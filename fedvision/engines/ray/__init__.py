"""The Ray engine: simulated clients in worker processes on one machine or a cluster."""
