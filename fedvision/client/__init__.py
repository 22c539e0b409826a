"""A machine that joins a federation with its own images: the resident client, its training, its doctor."""
