"""Networks, and which of their tensors travel."""
