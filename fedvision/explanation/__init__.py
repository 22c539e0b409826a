"""Which pixels a network's decisions rest on, and how faithful a map of them is to the network."""
