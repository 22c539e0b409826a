"""Where data lies: paths as people write them, and the two folders that the environment may move."""

from __future__ import annotations

import os
from pathlib import Path


def expand(text: str) -> Path:
    """Return an absolute path; ``~`` and ``$VARIABLES`` are replaced."""
    return Path(os.path.expandvars(text)).expanduser().absolute()


def data_root(text: str = "") -> Path:
    """Return the folder of data sets: as written, else ``$FEDVISION_DATA``, else ``~/.cache/fedvision``."""
    return expand(text or os.environ.get("FEDVISION_DATA") or "~/.cache/fedvision")


def cache_folder(text: str = "") -> Path:
    """Return the folder of decoded images.

    As written, else ``$FEDVISION_CACHE``, else ``~/.cache/fedvision/decoded``.
    """
    return expand(text or os.environ.get("FEDVISION_CACHE") or "~/.cache/fedvision/decoded")
