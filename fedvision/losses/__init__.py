"""Class-imbalance-aware losses: pure, per example, built from class counts."""
