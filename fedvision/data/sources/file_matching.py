"""File names in a table that are not quite those on disk: which file is meant, or what would correct them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from fedvision.data.decoding.scan import IMAGE_SUFFIXES
from fedvision.data.naming import composed


def spelled(folder: Path, name: str) -> str | None:
    """Return a file's name as it is on disk, or None.

    A name may be written with Windows' backslashes, and composed or decomposed (NFC, NFD) other than on disk.
    """
    for written in (name, name.replace("\\", "/")):
        for form in (written, composed(written), unicodedata.normalize("NFD", written)):
            if (folder / form).is_file():
                return form
    return None


def remedy(folder: Path, names: Sequence[str]) -> str:
    """Return what would correct names of files that are not in a folder; empty where nothing is known.

    Args:
        folder: Where they were looked for.
        names: At least one; the first is looked into.
    """
    name = names[0].replace("\\", "/")
    for suffix in sorted(IMAGE_SUFFIXES):
        for written in (suffix, suffix.upper()):
            if (folder / f"{name}{written}").is_file():
                return f'{name}{written} is there: set data.suffix = "{written}"'
    if other := _other_case(folder / name):
        return f"{other} is there: names must agree in capitals and suffix"
    for place in _subfolders(folder):
        if (place / name).is_file():
            return f'{place / name} is there: set data.root = "{place}"'
    # A table in the folder of the images may name them from above, or by the path of another machine.
    parts = Path(name).parts
    for start in range(1, len(parts)):
        if folder.joinpath(*parts[start:]).is_file():
            shown = "/".join(parts[start:])
            return f"{shown} is there: remove {'/'.join(parts[:start])}/ from the names, or correct data.root"
    return ""


def _other_case(path: Path) -> str | None:
    """Return the name of a file beside this one that has the same stem, whatever its case and suffix."""
    if not path.parent.is_dir():
        return None
    for entry in sorted(os.listdir(path.parent)):
        stem, suffix = os.path.splitext(entry.casefold())
        if stem in (path.name.casefold(), path.stem.casefold()) and suffix in IMAGE_SUFFIXES:
            return entry
    return None


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []
