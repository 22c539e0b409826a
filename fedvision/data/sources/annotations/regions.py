"""Regions of COCO: polygons and run lengths as masks.

A pixel belongs to a polygon if its centre does, by the even-odd rule; polygons of one object are a union.
pycocotools draws polygons on a grid five times as fine and lets the edge pixels that the line passes through
fall to either side, so masks differ in pixels at edges alone.

Run lengths go down the columns and begin with zeros. As text each is written in groups of five bits from the
lowest, 32 marks that more follow, 16 of the last one is the sign, and 48 is added; from the fourth run on it
is the difference to the run two before (``rleFrString`` of cocoapi's ``maskApi.c``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import DataError

Mask = NDArray[np.bool_]
_MORE, _SIGN, _BITS, _BASE = 32, 16, 31, 48


def region_mask(segmentation: Any, width: int, height: int, where: str) -> Mask:
    """Return the mask of an annotation's ``segmentation``, bool [H, W].

    Args:
        segmentation: A list of polygons [x1, y1, x2, y2, ...], or ``{"size": [H, W], "counts": ...}``.
        width: Of the image.
        height: Of the image.
        where: The annotation, for messages.

    Raises:
        DataError: It is neither, or is damaged.
    """
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, width, height, where)
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(
            f"{where}: its segmentation must be a list of polygons or run lengths with size and counts; "
            'annotate it, or read the boxes alone with use = "coco"'
        )
    found = np.zeros((height, width), np.bool_)
    for polygon in segmentation:
        found |= polygon_mask(_points(polygon, where), width, height)
    return found


def _points(polygon: Any, where: str) -> NDArray[np.float64]:
    numbers = isinstance(polygon, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in polygon
    )
    if not numbers:
        raise DataError(f"{where}: a polygon of its segmentation is no list of finite numbers; correct it")
    if len(polygon) % 2:
        raise DataError(
            f"{where}: a polygon of its segmentation has {len(polygon)} values, and x and y come in pairs; "
            "correct it"
        )
    if len(polygon) < 6:
        raise DataError(
            f"{where}: a polygon of its segmentation has {len(polygon) // 2} points, and an area needs 3; "
            "correct or remove it"
        )
    return np.array(polygon, np.float64).reshape(-1, 2)


def polygon_mask(points: NDArray[np.float64], width: int, height: int) -> Mask:
    """Return which pixels' centres lie inside a polygon, bool [H, W].

    Args:
        points: Corners x, y, float64 [P, 2], in pixels; what lies outside of the image is cut off.
        width: W.
        height: H.
    """
    mask = np.zeros((height, width), np.bool_)
    limits = np.array([width, height])
    left, top = np.floor(points.min(0)).clip(0, limits).astype(np.int64)
    right, bottom = np.ceil(points.max(0)).clip(0, limits).astype(np.int64)
    centres = np.arange(top, bottom) + 0.5
    x, y = points.T
    after = np.roll(points, -1, axis=0).T
    # A row crosses an edge where one end is above its centre line and the other is not.
    row, edge = np.nonzero((y[None] <= centres[:, None]) != (after[1][None] <= centres[:, None]))
    slope = (after[0] - x)[edge] / (after[1] - y)[edge]
    crossing = x[edge] + (centres[row] - y[edge]) * slope
    # From the first pixel whose centre is not left of the crossing on, inside and outside change places.
    first = np.ceil(crossing - 0.5).clip(left, right).astype(np.int64) - left
    toggles = np.zeros((bottom - top, right - left + 1), np.int64)
    np.add.at(toggles, (row, first), 1)
    mask[top:bottom, left:right] = toggles.cumsum(axis=1)[:, :-1] % 2 == 1
    return mask


def _run_lengths(segmentation: Mapping[str, Any], width: int, height: int, where: str) -> Mask:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise DataError(
            f"{where}: its run lengths are of size {size!r} (height, width), and its image has "
            f"{[height, width]}; export it again"
        )
    found = text_runs(counts) if isinstance(counts, str) else counts
    runs: list[Any] = found if isinstance(found, list) else []
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != width * height:
        raise DataError(
            f"{where}: its run lengths are damaged: counts must be numbers, or the text that stands for "
            f"them, of {height} x {width} pixels in all; export it again"
        )
    values = np.arange(len(runs)) % 2 == 1
    mask: Mask = np.repeat(values, runs).reshape(width, height).T
    return mask


def text_runs(text: str) -> Sequence[int] | None:
    """Return the run lengths that a text stands for; None where it is damaged."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - _BASE
        if not 0 <= code < 2 * _MORE or shift > 60:
            return None
        value |= (code & _BITS) << shift
        shift += 5
        if code & _MORE:
            continue
        if code & _SIGN:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if not shift else None
