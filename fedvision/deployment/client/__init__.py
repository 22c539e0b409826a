"""The client of a deployment: a daemon with local data, its training process and its checks."""
