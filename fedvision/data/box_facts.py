"""What a person should know of boxes before a run: how many, how large, how small after decoding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedvision.data.boxes import AREA, COUNT, CROWD, HEIGHT, WIDTH, Boxes, placed, present
from fedvision.formatting import plural

SMALL, MEDIUM = 32**2, 96**2
"""Areas in pixels of the file below which COCO calls an object small, and medium."""
_TINY, _LITTLE = 2, 4
"""Pixels of the shorter side in the decoded image below which nothing, or hardly anything, is to be seen."""


class _Sides(NamedTuple):
    """Widths and heights of all boxes that are no crowds."""

    decoded: NDArray[np.float64]
    """[n, 2], in pixels of the decoded images."""
    original: NDArray[np.float64]
    """[n, 2], in pixels of the files."""
    area: NDArray[np.float64]
    """[n], of the objects, in pixels of the files."""


def box_facts(targets: Boxes) -> list[str]:
    """Return sentences on the boxes of N images: their number, the smallest, sizes as COCO groups them."""
    sides, each = _sides(targets), targets[:, 0, COUNT]
    crowds = int(each.sum()) - len(sides.area)
    without = plural(int((each == 0).sum()), "image")
    text = f"{plural(len(sides.area), 'box', 'es')} in {plural(len(targets), 'image')}"
    if len(targets):
        text += f": {np.median(each):g} an image (median), {each.max():g} at most, {without} without any"
    text += f"; beside them {plural(crowds, 'crowd')} or ignored objects" if crowds else ""
    if not len(sides.area):
        return [text]
    small = int(np.argmin(sides.decoded.prod(1)))
    (width, height), (before, tall) = sides.decoded[small], sides.original[small]
    count = np.bincount(np.searchsorted([SMALL, MEDIUM], sides.area, side="right"), minlength=3)
    return [
        text,
        f"the smallest box has {width:.1f} x {height:.1f} pixels after decoding, {before:g} x {tall:g} in "
        "its file",
        f"by area in the files: {count[0]:,} small (below 32 x 32 pixels), {count[1]:,} medium, {count[2]:,} "
        "large (from 96 x 96 on)",
    ]


def tiny_boxes(targets: Boxes, size: int) -> tuple[str, ...]:
    """Return a notice on boxes of which decoding leaves next to nothing; none where there is no such box."""
    shorter = _sides(targets).decoded.min(axis=1, initial=np.inf)
    tiny, little = (int((shorter < limit).sum()) for limit in (_TINY, _LITTLE))
    if not tiny:
        return ()
    return (
        f"{tiny:,} of {len(shorter):,} boxes are under {_TINY} pixels at size = {size}, and {little:,} under "
        f"{_LITTLE}; raise data.size, or cut the images with data.tile",
    )


def _sides(targets: Boxes) -> _Sides:
    corners, _ = placed(torch.from_numpy(np.asarray(targets)))
    sides = (corners[..., 2:] - corners[..., :2]).numpy()
    rows = targets[:, 1:]
    own = present(targets) & (rows[..., CROWD] == 0)
    return _Sides(sides[own], rows[own][:, [WIDTH, HEIGHT]], rows[own][:, AREA])
