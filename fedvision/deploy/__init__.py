"""A federation across machines: certificates, the guarded server, checks before a machine joins."""
