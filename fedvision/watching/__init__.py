"""One live page on a run, and its figures for Prometheus: made from the run folder, read-only."""
