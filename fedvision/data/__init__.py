"""Image data: data sets, shards and batch transforms."""
