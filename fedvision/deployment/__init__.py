"""A federation across machines: certificates, run manifest, server, client and transport."""
