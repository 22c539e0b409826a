"""Tasks: what a model predicts, and how predictions become metrics."""
