"""Records of annotated images -> a ``Dataset``: the way that all formats share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvision.data.box_facts import tiny_boxes
from fedvision.data.boxes import CLASS, Placement, packed
from fedvision.data.dataset import Dataset
from fedvision.data.decoding.file_list import Listing, Reading, to_dataset
from fedvision.data.decoding.placement import Located, locate_all
from fedvision.data.sources.annotations.checks import check_sizes, checked_boxes
from fedvision.data.sources.annotations.records import Record, columns_of, with_pattern
from fedvision.data.sources.annotations.tiles import SOURCE, check_tiles, in_tiles
from fedvision.data.targets import Targets, strata
from fedvision.errors import DataError
from fedvision.stages import stage


@dataclass(frozen=True, kw_only=True)
class AnnotatedReading(Reading):
    """The keys that every source of annotated images shares."""

    fit: str = "pad"
    """``"pad"`` (black bars), ``"stretch"``, ``"crop"`` (shorter side to ``size``, then the centre), or
    ``"exact"``: files of another size cannot be read."""
    pattern: str = ""
    """A regular expression with named groups, searched in the files' names: each group becomes a column, such
    as ``"(?P<patient>[^_/]+)_"``."""


@dataclass(frozen=True, kw_only=True)
class BoxReading(AnnotatedReading):
    """The keys that every source of boxes shares."""

    fit: str = "pad"
    """``"pad"`` (black bars), ``"stretch"``, or ``"exact"``: files of another size cannot be read."""
    repair: bool = False
    """Clip boxes that stick out of their image by more than a pixel and leave out those without area or
    outside of it, with a notice that counts them; else they are refused."""
    tile: int = 0
    """Cut images into tiles of that side in pixels, each an image; 0 keeps them whole."""
    overlap: int = 0
    """Pixels that neighbouring tiles share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit == "crop":
            raise ValueError('fit = "crop" would cut boxes at the edges; take "pad" or "stretch"')
        check_tiles(self.tile, self.overlap)


def boxes_dataset(
    records: Sequence[Record],
    root: Path,
    classes: Sequence[str],
    reading: BoxReading,
    *,
    shares: bool = False,
    notices: tuple[str, ...] = (),
) -> Dataset:
    """Return images with their boxes, ``fedvision.data.boxes``.

    Args:
        records: N images; the numbers of their classes are those of ``classes``.
        root: The folder of their files.
        classes: Class names.
        reading: The experiment's keys.
        shares: Whether boxes are in shares of the image's sides.
        notices: On the annotations themselves.

    Raises:
        ValueError: A value does not fit the data.
        DataError: A box or a file is wrong; as for ``to_dataset``.
    """
    records, located, sized = read_files(records, root, reading)
    records, changed = checked_boxes(records, located, shares=shares, repair=reading.repair)
    if reading.tile:
        records, root, cut = in_tiles(
            records, root, located, tile=reading.tile, overlap=reading.overlap, how=reading
        )
        located, changed = locate_all(root, [r.name for r in records], reading), (*changed, *cut)
        # Tiles of one image overlap and show the same ground: no split may part them.
        reading = replace(reading, group=reading.group or SOURCE)
    present = np.zeros((len(records), len(classes)), np.uint8)
    for row, record in zip(present, records, strict=True):
        row[record.boxes[:, CLASS].astype(np.int64)] = 1
    targets = packed([record.boxes for record in records], [placement_of(one) for one in located])
    listed = (*notices, *sized, *changed, *tiny_boxes(targets, reading.size))
    return _dataset(records, root, targets, present, classes, reading, listed)


def masks_dataset(
    records: Sequence[Record],
    root: Path,
    masks: NDArray[np.uint8],
    classes: Sequence[str],
    reading: Reading,
    notices: tuple[str, ...],
) -> Dataset:
    """Return images with a class for each pixel.

    Args:
        records: N images, after ``read_files``.
        root: The folder of their files.
        masks: uint8 [N, size, size]; 255 is no class.
        classes: Class names.
        reading: The experiment's keys.
        notices: On the annotations.
    """
    present = np.zeros((len(records), len(classes)), np.uint8)
    for row, mask in zip(present, masks, strict=True):
        seen = np.zeros(256, bool)
        seen[mask] = True
        row[:] = seen[: len(classes)]
    return _dataset(records, root, masks, present, classes, reading, notices)


def read_files(
    records: Sequence[Record], root: Path, reading: AnnotatedReading
) -> tuple[list[Record], list[Located | str], tuple[str, ...]]:
    """Look at the files of records.

    Returns:
        The records with the columns of ``pattern``, what the files' headers say, and notices.

    Raises:
        DataError: There is none, or a file has another size than its record says.
    """
    if not records:
        raise DataError(f"{root}: there are no annotated images; correct data.path")
    records = with_pattern(records, reading.pattern)
    stage(f"looking at the sizes of {len(records):,} image files in {root}")
    located = locate_all(root, [record.name for record in records], reading)
    return records, located, check_sizes(records, located)


def placement_of(one: Located | str) -> Placement:
    """Return where a file's pixels go; nowhere of one that the decoder will leave out."""
    return Placement(width=0, height=0) if isinstance(one, str) else one.placement


def _dataset(
    records: Sequence[Record],
    root: Path,
    targets: Targets,
    present: NDArray[np.uint8],
    classes: Sequence[str],
    reading: Reading,
    notices: tuple[str, ...],
) -> Dataset:
    listing = Listing(
        root=root,
        names=[record.name for record in records],
        labels=targets,
        classes=tuple(classes),
        parts=np.array([record.part for record in records]),
        columns=columns_of(records),
        notices=notices,
        strata=strata(present),
    )
    return to_dataset(listing, reading)
