"""How messages travel between a SuperLink and its clients: format, validation, storage."""
