"""A folder to be in."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in an empty folder, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
