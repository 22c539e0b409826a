"""``--data SOURCE`` and the like: a folder, a file or a name on the command line, as a ``[data]`` table."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedvision import registry, tables
from fedvision.data.sources.part_names import part_of
from fedvision.errors import ConfigError

_PICTURES = ("image-folder", "manifest", "mask-folder", "coco", "coco-masks", "voc", "yolo")
"""Sources whose images are files, which are brought to a size."""
_FILES = {".npz": "npz", ".csv": "manifest"}


def data_table(
    source: str, pictures: Callable[[], Mapping[str, Any]], option: str = "--data"
) -> dict[str, Any]:
    """Return ``[data]`` for a folder, a file, or a source by its name.

    Args:
        source: A folder of images, an .npz or .csv file, or an option of ``[data] use``.
        pictures: Returns the keys that image files need, such as ``{"size": 64}``; called for files alone.
        option: The option that names it, for errors.

    Raises:
        ConfigError: There is no such folder, file or source, or the file is of another kind.
    """
    path = Path(source)
    if source in registry.names("data") or ":" in source:
        return {"use": source}
    if path.is_dir() and _has_masks(path):
        return {"use": "mask-folder", "path": source, **pictures()}
    if path.is_dir():
        return {"use": "image-folder", "path": source, **pictures()}
    if path.is_file():
        if (use := _FILES.get(path.suffix.lower())) is None:
            raise ConfigError(f"{option} {source}: only folders, .npz and .csv files are read, not this one")
        return {"use": use, "path": source, **(pictures() if use == "manifest" else {})}
    if path.suffix or "/" in source:
        raise ConfigError(f"{option} {source}: there is no such file or folder")
    return {"use": source}


def spelled_table(
    source: str, pictures: Callable[[], Mapping[str, Any]], option: str = "--data"
) -> dict[str, Any]:
    """Return ``[data]`` for what ``data_table`` takes, for an experiment's file, or for a table on one line.

    Args:
        source: As above; or annotations of boxes: COCO's .json file, YOLO's .yaml file or the folder of its
            ``data.yaml``, VOC's folder; or a .toml file, whose ``[data]`` is taken; or
            ``use = "npz", path = "photos.npz"``.
        pictures: As above; a table that names another value keeps it.
        option: As above.

    Raises:
        ConfigError: As above, or the text is no table.
    """
    if source.endswith(".toml"):
        table = tables.read(Path(source), "an experiment's file").get("data")
        if table is None:
            raise ConfigError(f"{option} {source}: it has no [data]; name an experiment's file")
        return {"use": table} if isinstance(table, str) else _table(table, source, pictures, option)
    if (use := _annotated(Path(source))) is not None:
        return {"use": use, "path": source, **pictures()}
    if "=" not in source or Path(source).exists():
        return data_table(source, pictures, option)
    inside = source.strip().removeprefix("{").removesuffix("}")
    try:
        return _table(tomllib.loads(f"data = {{{inside}}}")["data"], source, pictures, option)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f'{option} {source}: this is no table: {error}; write it as \'use = "npz", path = "photos.npz"\''
        ) from error


def _table(table: Any, source: str, pictures: Callable[[], Mapping[str, Any]], option: str) -> dict[str, Any]:
    if not isinstance(table, dict) or not isinstance(table.get("use"), str):
        raise ConfigError(f"{option} {source}: its key use is missing; it says which source reads the images")
    return {**pictures(), **table} if table["use"] in _PICTURES else table


def _annotated(path: Path) -> str | None:
    """Return the source of a file or folder of boxes; None where it is another one."""
    if path.is_dir():
        if (path / "data.yaml").is_file():
            return "yolo"
        return "voc" if (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir() else None
    suffixes = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
    return suffixes.get(path.suffix.lower()) if path.is_file() else None


def _has_masks(path: Path) -> bool:
    """Return whether a folder, or a part of a data set in it, has folders ``images`` and ``masks``."""
    places = (path, *(one for one in path.iterdir() if one.is_dir() and part_of(one.name)))
    return any((one / "images").is_dir() and (one / "masks").is_dir() for one in places)
