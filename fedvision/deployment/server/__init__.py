"""The server of a deployment: SuperLink, API gateway, client registry, masked sums."""
