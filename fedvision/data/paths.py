"""Where data lies: paths as people write them, and the two folders that the environment may move."""

from __future__ import annotations

import os
from pathlib import Path

from fedvision.errors import DataError


def expand(text: str) -> Path:
    """Return an absolute path; ``~`` and ``$VARIABLES`` are replaced."""
    return expand_home(text).absolute()


def expand_home(text: str) -> Path:
    """Return a path, relative where the text is; ``~`` and ``$VARIABLES`` are replaced.

    Raises:
        DataError: Nobody knows the home folder that ``~`` or ``~name`` stands for.
    """
    path = Path(os.path.expandvars(text))
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{text}: the home folder {path.parts[0]} cannot be found; write the path out, or set HOME, "
            "FEDVISION_DATA (data sets) and FEDVISION_CACHE (decoded images)"
        ) from error


def data_root(text: str = "") -> Path:
    """Return the folder of data sets: as written, else ``$FEDVISION_DATA``, else ``~/.cache/fedvision``."""
    return expand(text or os.environ.get("FEDVISION_DATA") or "~/.cache/fedvision")


def cache_folder(text: str = "") -> Path:
    """Return the folder of decoded images.

    As written, else ``$FEDVISION_CACHE``, else ``~/.cache/fedvision/decoded``.
    """
    return expand(text or os.environ.get("FEDVISION_CACHE") or "~/.cache/fedvision/decoded")
