"""The server: rounds, deadlines, validation of updates, late replies, scores."""
