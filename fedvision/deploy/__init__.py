"""The server of a federation across machines: certificates, the guarded SuperLink, who is there."""
