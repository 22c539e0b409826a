"""The bridge to Flower: wire format, client app, server app and the non-public names that are leaned on."""
