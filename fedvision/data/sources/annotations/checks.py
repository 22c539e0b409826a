"""Boxes against the files that they are drawn on: what is wrong is refused, or repaired and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedvision.data.boxes import AREA, CLASS, COLUMNS, CROWD, HEIGHT, WIDTH, Boxes, X, Y
from fedvision.data.decoding.placement import Located
from fedvision.data.sources.annotations.records import Record
from fedvision.errors import DataError
from fedvision.formatting import plural

TOLERANCE = 1.0
"""Pixels by which a box may stick out of its image: rounding, and counting from 1, not 0, bring as much."""
_ROUNDING = 1e-6
"""Pixels of clipping of which no notice counts them."""
_OVER = 1.01
"""Times its box an area may be before a notice counts it: annotations are rounded."""


def check_sizes(records: Sequence[Record], located: Sequence[Located | str]) -> tuple[str, ...]:
    """Check that files have the sizes that their records say.

    Args:
        records: N.
        located: [N], of their files; those that cannot be read are left to the decoder.

    Returns:
        Notices.

    Raises:
        DataError: A file has another size.
    """
    silent = 0
    for record, one in zip(records, located, strict=True):
        if isinstance(one, str):
            continue
        upright = (one.placement.width, one.placement.height)
        if record.size is not None and record.size != upright:
            if one.turned and record.size == upright[::-1]:
                raise DataError(
                    f"{record.where}: it says {_sides(record.size)} pixels, and upright, as its EXIF "
                    f"orientation asks, {record.name} has {_sides(upright)}: it was annotated lying on its "
                    "side; save the file turned and without that tag, and its annotations with it, or remove "
                    "the tag"
                )
            raise DataError(
                f"{record.where}: it says {_sides(record.size)} pixels, but {record.name} has "
                f"{_sides(upright)}: it is another file, or was resized; bring back the annotated one, or "
                "scale its annotations"
            )
        silent += one.oriented and (record.size is None or not one.turned or upright[0] == upright[1])
    if not silent:
        return ()
    return (
        f"{plural(silent, 'image')} with an EXIF orientation: annotations are taken as drawn on the upright "
        "image; look at one",
    )


@dataclass(frozen=True, kw_only=True)
class _All:
    """The boxes of all images in one array."""

    records: Sequence[Record]
    boxes: Boxes
    """float64 [T, 7], in pixels."""
    owner: NDArray[np.int64]
    """[T]: number of the image."""
    number: NDArray[np.int64]
    """[T]: number of the box in its image's record."""
    limits: NDArray[np.float64]
    """[T, 2]: width and height of the image."""

    @property
    def over(self) -> NDArray[np.float64]:
        """By how many pixels each box sticks out, at its worst side [T]."""
        begin, end = _ends(self.boxes)
        worst: NDArray[np.float64] = np.maximum(-begin, end - self.limits).max(axis=1, initial=0.0)
        return worst

    def refuse(self, wrong: NDArray[np.bool_], problem: str, *, told: bool = True) -> None:
        """Refuse the first of some wrong boxes.

        Args:
            wrong: [T].
            problem: What is wrong, and what to do.
            told: Whether its coordinates and its image's size are told.

        Raises:
            DataError: There is one.
        """
        if not wrong.any():
            return
        at = int(wrong.argmax())
        record = self.records[int(self.owner[at])]
        x, y, width, height = self.boxes[at, [X, Y, WIDTH, HEIGHT]]
        shown = f"x {x:g}, y {y:g}, width {width:g}, height {height:g} " if told else ""
        size = "{:g} x {:g} pixels".format(*self.limits[at])
        where = f"{record.file}, {record.places[int(self.number[at])]}"
        raise DataError(f"{where}: the box {shown}{problem.format(size=size)}")


def checked_boxes(
    records: Sequence[Record], located: Sequence[Located | str], *, shares: bool, repair: bool
) -> tuple[list[Record], tuple[str, ...]]:
    """Return records whose boxes lie inside their images and have an area.

    Args:
        records: N.
        located: [N], of their files; a file that cannot be read loses its boxes.
        shares: Whether coordinates are shares of the image's sides; they become pixels.
        repair: Whether boxes that stick out far are clipped and those without area or outside left out.

    Returns:
        The records, and notices on what was changed.

    Raises:
        DataError: A box is not finite, has no area, lies outside or sticks out.
    """
    own = _gathered(records, located, shares)
    own.refuse(
        np.any(~np.isfinite(own.boxes), axis=1),
        "has a value that is no finite number; correct or remove it",
        told=False,
    )
    begin, end = _ends(own.boxes)
    inner_begin, inner_end = begin.clip(0, own.limits), end.clip(0, own.limits)
    empty: NDArray[np.bool_] = np.any(own.boxes[:, [WIDTH, HEIGHT]] <= 0, axis=1)
    outside: NDArray[np.bool_] = ~empty & np.any(inner_end <= inner_begin, axis=1)
    if not repair:
        own.refuse(empty, "has no area; remove it, or set data.repair = true to leave it out")
        own.refuse(
            outside,
            "lies outside of the image of {size}; correct it, or set data.repair = true to leave it out",
        )
        own.refuse(
            own.over > TOLERANCE,
            "sticks out of the image of {size} by more than one; correct it, or set data.repair = true to "
            "clip it",
        )
    clipped = own.over > 0
    boxes = own.boxes.copy()
    # Of boxes inside not even rounding may change a number.
    boxes[clipped, X : Y + 1] = inner_begin[clipped]
    boxes[clipped, WIDTH : HEIGHT + 1] = (inner_end - inner_begin)[clipped]
    whole = boxes[:, WIDTH] * boxes[:, HEIGHT]
    # Clipping makes boxes smaller; only an area that the annotation itself has too large is worth a word.
    larger = boxes[:, AREA] > own.boxes[:, WIDTH] * own.boxes[:, HEIGHT] * _OVER
    boxes[:, AREA] = np.minimum(boxes[:, AREA], whole)
    kept = ~(empty | outside)
    seen = np.column_stack([own.owner, boxes[:, [CLASS, X, Y, WIDTH, HEIGHT, CROWD]]])[kept]
    notices = _notices(
        int(kept.sum()),
        clipped=int((clipped & kept & (own.over > _ROUNDING)).sum()),
        empty=int(empty.sum()),
        outside=int(outside.sum()),
        larger=int((larger & kept).sum()),
        twice=len(seen) - len(np.unique(seen, axis=0)),
    )
    return _parted(own, boxes, kept), notices


def _gathered(records: Sequence[Record], located: Sequence[Located | str], shares: bool) -> _All:
    counts = [
        0 if isinstance(one, str) else len(record.boxes) for record, one in zip(records, located, strict=True)
    ]
    owner = np.repeat(np.arange(len(records)), counts)
    sides = [
        (0, 0) if isinstance(one, str) else (one.placement.width, one.placement.height) for one in located
    ]
    limits = np.array(sides, np.float64).reshape(-1, 2)[owner]
    taken = [record.boxes for record, count in zip(records, counts, strict=True) if count]
    boxes = np.concatenate([np.zeros((0, COLUMNS)), *taken])
    if shares:
        boxes[:, X : Y + 1] *= limits
        boxes[:, WIDTH : HEIGHT + 1] *= limits
        boxes[:, AREA] *= limits.prod(axis=1)
    starts = (np.cumsum(counts) - counts).astype(np.int64)
    number = np.arange(len(owner)) - starts[owner]
    return _All(records=records, boxes=boxes, owner=owner, number=number, limits=limits)


def _ends(boxes: Boxes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return upper left and lower right corners, each [T, 2]."""
    corner = boxes[:, X : Y + 1]
    return corner, corner + boxes[:, WIDTH : HEIGHT + 1]


def _parted(own: _All, boxes: Boxes, kept: NDArray[np.bool_]) -> list[Record]:
    """Return the records with those of their boxes that are kept."""
    each = np.bincount(own.owner[kept], minlength=len(own.records))
    parts = np.split(boxes[kept], np.cumsum(each)[:-1])
    numbers = np.split(own.number[kept], np.cumsum(each)[:-1])
    found = []
    for record, part, of in zip(own.records, parts, numbers, strict=True):
        same = len(part) == len(record.boxes)
        places = record.places if same else [record.places[at] for at in of.tolist()]
        found.append(replace(record, boxes=part, places=places))
    return found


def _notices(
    total: int, *, clipped: int, empty: int, outside: int, larger: int, twice: int
) -> tuple[str, ...]:
    said = (
        (clipped, f"of {total:,} boxes stick out of their image and are clipped to it"),
        (empty, "boxes have no area and are left out"),
        (outside, "boxes lie outside of their image and are left out"),
        (larger, f"of {total:,} boxes have an area above width x height, which is taken instead"),
        (twice, f"of {total:,} boxes are there twice: the same class and place in the same image"),
    )
    return tuple(f"{count:,} {text}" for count, text in said if count)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
