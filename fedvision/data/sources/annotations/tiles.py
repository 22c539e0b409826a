"""Large images cut into square tiles with their boxes, so that small objects keep their pixels.

Tiles begin every ``tile - overlap`` pixels; the last one of a row or column begins ``tile`` pixels before
the edge, so that all are of one size where the image is at least as large. So do those of SAHI (Akyon et al.
2022, "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection", arXiv 2202.06934).

A box of which a tile shows at least half is there with the part that shows. One that shows less is a crowd:
it is neither trained on nor counted, as half a tree at the edge is no background either. Where tiles overlap,
an object is in each of them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

from fedvision.data.boxes import AREA, CROWD, HEIGHT, WIDTH, Boxes, X, Y
from fedvision.data.decoding import pixels
from fedvision.data.decoding.bit_depth import Depth
from fedvision.data.decoding.decode import Decoding
from fedvision.data.decoding.placement import Located
from fedvision.data.decoding.value_range import narrow_files
from fedvision.data.paths import cache_folder
from fedvision.data.sources.annotations.records import Record
from fedvision.errors import DataError
from fedvision.formatting import plural
from fedvision.ranges import check_range
from fedvision.stages import stage

SOURCE = "source"
"""Column of the file that a tile was cut from."""
_VISIBLE = 0.5
_VERSION = "1"


class Tile(NamedTuple):
    """Where a tile lies in its image, in pixels."""

    left: int
    top: int
    right: int
    bottom: int


def check_tiles(tile: int, overlap: int) -> None:
    """Check the keys ``tile`` and ``overlap``.

    Raises:
        ValueError: One is out of range.
    """
    check_range(at_least=0, tile=tile, overlap=overlap)
    if overlap and overlap >= max(1, tile):
        raise ValueError(f"overlap = {overlap} must be below tile = {tile}, the side of the tiles in pixels")


def tiles_of(width: int, height: int, tile: int, overlap: int) -> list[Tile]:
    """Return the tiles of an image, row by row.

    Args:
        width: Of the image, pixels.
        height: Of the image, pixels.
        tile: Side of a tile; an image that is smaller has one of its own size there.
        overlap: Pixels that neighbours share at least.
    """
    columns, rows = (_starts(side, tile, tile - overlap) for side in (width, height))
    return [
        Tile(left, top, min(left + tile, width), min(top + tile, height)) for top in rows for left in columns
    ]


def _starts(side: int, tile: int, step: int) -> list[int]:
    last = max(0, side - tile)
    return [*range(0, last, step), last]


def boxes_in(boxes: Boxes, tile: Tile) -> tuple[Boxes, list[int]]:
    """Return what a tile shows of boxes, in its own coordinates.

    Args:
        boxes: float64 [m, 7], inside the image.
        tile: Where it lies.

    Returns:
        float64 [n, 7], of boxes that show less than half as crowds, and their numbers among the m.
    """
    left, top = boxes[:, X], boxes[:, Y]
    right, bottom = left + boxes[:, WIDTH], top + boxes[:, HEIGHT]
    inner = boxes.copy()
    inner[:, X], inner[:, Y] = left.clip(tile.left, tile.right), top.clip(tile.top, tile.bottom)
    inner[:, WIDTH] = right.clip(tile.left, tile.right) - inner[:, X]
    inner[:, HEIGHT] = bottom.clip(tile.top, tile.bottom) - inner[:, Y]
    share = inner[:, WIDTH] * inner[:, HEIGHT] / (boxes[:, WIDTH] * boxes[:, HEIGHT])
    inner[:, AREA] *= share
    inner[share < _VISIBLE, CROWD] = 1
    inner[:, X] -= tile.left
    inner[:, Y] -= tile.top
    shown = np.flatnonzero(share > 0)
    return inner[shown], shown.tolist()


def in_tiles(
    records: Sequence[Record],
    root: Path,
    located: Sequence[Located | str],
    *,
    tile: int,
    overlap: int,
    how: Decoding,
) -> tuple[list[Record], Path, tuple[str, ...]]:
    """Cut images into tiles, once: they are PNG files in the cache.

    Args:
        records: N images with boxes that lie inside them.
        root: The folder of their files.
        located: [N], of the files.
        tile: Side of a tile in pixels.
        overlap: Pixels that neighbours share.
        how: As images are decoded: tiles hold the gray or colour that the decoder makes of a file.

    Returns:
        The tiles' records, with a column ``SOURCE``, the folder of their files, and notices.

    Raises:
        DataError: A file cannot be cut, or the cache not be written.
    """
    cut = {
        record.name: tiles_of(one.placement.width, one.placement.height, tile, overlap)
        for record, one in zip(records, located, strict=True)
        if not isinstance(one, str)
    }
    recipe = f"{_VERSION} {tile} {overlap} {how.channels} {how.range} {PIL.__version__} {root}"
    folder = cache_folder(how.cache) / "tiles" / _key(records, root, recipe)
    if not folder.is_dir():
        stage(f"cutting {plural(len(cut), 'image')} of {root} into tiles of {tile} pixels")
        _write(cut, root, folder, how)
    found = [piece for record in records if record.name in cut for piece in _pieces(record, cut[record.name])]
    if not found:
        raise DataError(f"{root}: none of {len(records):,} image files can be read and cut into tiles")
    lost = [record.name for record in records if record.name not in cut]
    unread = f"{len(lost):,} image files cannot be read and give no tiles, such as {(*lost, '')[0]}"
    notices = (
        *((unread,) if lost else ()),
        f"{plural(len(cut), 'image')} cut into {len(found):,} tiles of {tile} pixels, overlap {overlap}",
    )
    return found, folder, notices


def _pieces(record: Record, tiles: Sequence[Tile]) -> Iterator[Record]:
    for number, tile in enumerate(tiles):
        boxes, shown = boxes_in(record.boxes, tile)
        yield replace(
            record,
            name=_name(record.name, number),
            size=(tile.right - tile.left, tile.bottom - tile.top),
            boxes=boxes,
            places=[record.places[at] for at in shown],
            facts={**record.facts, SOURCE: record.name, "left": str(tile.left), "top": str(tile.top)},
        )


def _name(name: str, number: int) -> str:
    return f"{name.replace('..', '_')}/{number:05}.png"


def _key(records: Sequence[Record], root: Path, recipe: str) -> str:
    digest = hashlib.sha256(recipe.encode(errors="surrogateescape"))
    for record in records:
        stat = os.stat(root / record.name)
        facts = f"\0{record.name}\0{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        digest.update(facts.encode(errors="surrogateescape"))
    return digest.hexdigest()[:40]


def _write(cut: Mapping[str, Sequence[Tile]], root: Path, folder: Path, how: Decoding) -> None:
    """Write all tiles of a list of images; the folder appears whole or not at all."""
    partial, deep = None, dict[str, Depth]()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
        for name, tiles in cut.items():
            image, depth = _whole(root / name, how)
            deep |= {name: depth} if depth else {}
            for number, tile in enumerate(tiles):
                path = partial / _name(name, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                image.crop(tile).save(path, compress_level=1)
        # Files whose white nobody declared may be all but black; their tiles no longer tell it.
        narrow_files(deep, root)
        if not folder.is_dir():
            os.rename(partial, folder)
    except OSError as error:
        raise DataError(
            f"{folder.parent}: tiles cannot be written there: {error.strerror or error}; free its disk, or "
            "set data.cache or $FEDVISION_CACHE to another folder"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _whole(path: Path, how: Decoding) -> tuple[Image.Image, Depth | None]:
    try:
        with warnings.catch_warnings():
            # What Pillow warns of (odd metadata, large images) it has read nevertheless.
            warnings.simplefilter("ignore")
            return pixels.whole(path, channels=how.channels, white=float(how.range))
    except Exception as error:  # a broken file can raise almost anything in almost any decoder
        raise DataError(
            f"{path}: it cannot be read and cut into tiles: {error or type(error).__name__}; repair it or "
            "remove it and its annotations"
        ) from error
