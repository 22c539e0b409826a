"""The bridge to Flower: what messages hold, client app, server app and the non-public names leaned on."""
