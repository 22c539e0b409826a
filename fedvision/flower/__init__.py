"""The adapter to Flower: message records, client app, strategy adapter, client registry, non-public names."""
