"""What a measurement of detections carries: a row int64 [6] of each, and tables of what is to be found.

A row says which image, class and rank a detection has, with which score, and for each of 10 IoU thresholds
and 4 ranges of areas whether it found an object (``MATCHED``) and whether it is left out (``IGNORED``). Boxes
and pixels stay where the images are. Rows are in order of image, class and rank.

The tables [4, C + 1, 2], one for each range of areas, count annotated boxes and images, each once: row c is a
class, column ``COUNTS`` those that are to be found in this range, column ``LEFT_OUT`` the other ones of the
class and crowds; the last row is images, all in column ``COUNTS``.

Thresholds, areas and what is ignored are those of COCO: Lin et al. 2014, "Microsoft COCO: Common Objects in
Context", arXiv 1405.0312, as pycocotools 2.0.11 has them.

Shape letters: M detections, C classes, A = 4 ranges of areas, T = 10 thresholds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IMAGE, CLASS, RANK, SCORE, MATCHED, IGNORED = range(6)
"""Columns of a row: the image's position among those that are measured; the class from 0; the number of the
detection, by falling score, in its image and class; the bits of the score as float32; bits by area and
threshold."""
WIDTH = 6
COUNTS, LEFT_OUT = range(2)
"""Columns of a table."""
THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
"""The IoU from which on a detection can match a box [T]."""
AREAS = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""Ranges of areas in pixels of the image's file; both ends belong to a range."""
BITS = len(AREAS) * len(THRESHOLDS)
"""Of ``MATCHED`` and ``IGNORED``: bit 10 a + t is area range a and threshold t."""
MOST = 100
"""Detections of a class that count in an image, those with the highest scores."""


def in_range(areas: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return in which ranges areas [n] lie, bool [n, A]."""
    low, high = np.array(list(AREAS.values())).T
    inside: NDArray[np.bool_] = ~((areas[:, None] < low) | (areas[:, None] > high))
    return inside


def packed_bits(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return flags [M, A, T] as whole numbers [M]."""
    octets = np.zeros((len(flags), 8), np.uint8)
    octets[:, : BITS // 8] = np.packbits(flags.reshape(len(flags), BITS), axis=1, bitorder="little")
    return octets.view("<i8")[:, 0].astype(np.int64)


def unpacked_bits(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the flags [M, A, T] of whole numbers [M]."""
    octets = np.ascontiguousarray(numbers, "<i8").view(np.uint8).reshape(-1, 8)
    flags = np.unpackbits(octets, axis=1, count=BITS, bitorder="little")
    return flags.view(np.bool_).reshape(-1, len(AREAS), len(THRESHOLDS))


def packed_scores(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the bits of scores [M] as whole numbers [M]."""
    return np.ascontiguousarray(scores, np.float32).view(np.int32).astype(np.int64)


def unpacked_scores(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the scores [M] of which whole numbers [M] are the bits."""
    return numbers.astype(np.int32).view(np.float32)


def images_of(tables: NDArray[np.int64]) -> int:
    """Return how many images the tables [A, C + 1, 2] count."""
    return int(tables[0, -1, COUNTS])


def boxes_of(tables: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many boxes of each class [C] there are to find, of any size and without crowds."""
    found: NDArray[np.int64] = tables[0, :-1, COUNTS]
    return found


def rows_problem(rows: NDArray[np.int64], tables: NDArray[np.int64]) -> str | None:
    """Return what is wrong with rows and tables that came from elsewhere; None where nothing is.

    What passes gives numbers within 0 to 1: no class has more objects found than there are. Whether the rows
    are true only the images could tell.

    Args:
        rows: int64 [M, 6].
        tables: int64 [A, C + 1, 2], none negative.

    Returns:
        One sentence.
    """
    return _wrong_tables(tables) or _wrong_places(rows, tables) or _wrong_flags(rows, tables)


def _wrong_tables(tables: NDArray[np.int64]) -> str | None:
    totals = tables.sum(axis=2)
    if (totals != totals[0]).any():
        return "the tables of detections do not have the same boxes and images in each range of areas"
    if tables[:, -1, LEFT_OUT].any():
        return "the tables of detections leave images out, and only boxes can be"
    if (tables[1:, :, COUNTS] > tables[0, :, COUNTS]).any():
        return "the tables of detections have more boxes of one range of areas than of all"
    return None


def _wrong_places(rows: NDArray[np.int64], tables: NDArray[np.int64]) -> str | None:
    """Return what is wrong with the columns ``IMAGE`` to ``SCORE``."""
    if rows.ndim != 2 or rows.shape[1] != WIDTH or rows.dtype != np.int64:
        return f"rows of detections are {rows.dtype} {list(rows.shape)} and must be int64 [M, {WIDTH}]"
    image, label, rank, score = rows[:, : SCORE + 1].T
    limits = (
        ("images", image, images_of(tables)),
        ("classes", label, tables.shape[1] - 1),
        ("ranks", rank, MOST),
    )
    for name, values, below in limits:
        if ((values < 0) | (values >= below)).any():
            return f"rows of detections name {name} beyond the {below} that there are"
    if (score != score.astype(np.int32)).any() or not np.isfinite(unpacked_scores(score)).all():
        return "rows of detections have scores that are no finite numbers"
    if not len(rows):
        return None
    new = np.ones(len(rows), bool)
    new[1:] = (image[1:] != image[:-1]) | (label[1:] != label[:-1])
    later = (image[1:] > image[:-1]) | ((image[1:] == image[:-1]) & (label[1:] > label[:-1]))
    if not (later | ~new[1:]).all() or (rank != np.where(new, 0, np.roll(rank, 1) + 1)).any():
        return "rows of detections are not in order of image, class and rank"
    scores = unpacked_scores(score)
    if (~new[1:] & (scores[1:] > scores[:-1])).any():
        return "rows of detections have scores that rise with the rank"
    return None


def _wrong_flags(rows: NDArray[np.int64], tables: NDArray[np.int64]) -> str | None:
    """Return what is wrong with the columns ``MATCHED`` and ``IGNORED``."""
    numbers = rows[:, MATCHED:]
    if ((numbers < 0) | (numbers >= 1 << BITS)).any():
        return f"rows of detections have more than {BITS} flags"
    matched, ignored = (unpacked_bits(column) for column in numbers.T)
    # What matched nothing is left out for its own area, which no threshold changes.
    unmatched_out, unmatched_in = (~matched & ignored).any(axis=2), (~matched & ~ignored).any(axis=2)
    if (unmatched_out & unmatched_in).any():
        return "rows of detections ignore one without a match at some thresholds only"
    label = rows[:, CLASS]
    found = np.zeros((tables.shape[1] - 1, len(AREAS), len(THRESHOLDS)), np.int64)
    np.add.at(found, label, matched & ~ignored)
    if (found > tables[:, :-1, COUNTS].T[:, :, None]).any():
        return "rows of detections find more boxes of a class than there are"
    aside = (matched & ignored).any(axis=2)
    if (aside & (tables[:, :-1, LEFT_OUT].T[label] == 0)).any():
        return "rows of detections match boxes that do not count, and there are none"
    return None
