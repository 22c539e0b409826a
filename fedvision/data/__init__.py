"""Images: sources, decoding, partitions, skew, shards and batch transforms."""
