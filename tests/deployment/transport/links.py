"""What tests of a SuperLink's state need."""

from __future__ import annotations

from typing import Any


def close(state: Any) -> None:
    """Close a state's files and its database: Python 3.13 warns of connections left to its collector."""
    state.object_store.close()
    state._engine.dispose()
