"""Pictures of measured images with what was right and wrong in them, as a task has them drawn.

A task says what is on a picture and what of it is right; lines, colours and names are the page's.

Shape letters: B images, P panels of each, side by side, K boxes on them, H and W of an image, h and w of its
picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

WRONG, RIGHT, NEITHER = range(3)
"""Verdicts on a box: an object that was missed, or a box where there is no object; an object and a box that
fit each other; a crowd, and what lies in it."""
IMAGE, LABEL, SCORE, VERDICT, LEFT, TOP, RIGHT_EDGE, BOTTOM = range(8)
"""Columns of ``Drawings.boxes``: the image's position; the class; the score, NaN of an annotated box; what is
to be said of it; corners in pixels of the picture."""
COLUMNS = 8
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_LONGEST = 320
"""Pixels of a picture's longer side, about: what a report shows of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawings:
    """Pictures of B images.

    Raises:
        ValueError: The parts do not fit each other.
    """

    panels: NDArray[np.uint8]
    """uint8 [B, P, h, w, 3]."""
    titles: Sequence[str]
    """[P]: what each panel shows."""
    captions: Sequence[str]
    """[B]: what was wrong in each image, in a few words."""
    about: str
    """What the pictures show and in which order, one sentence for the page."""
    boxes: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, COLUMNS)))
    """float64 [K, 8] by the columns ``IMAGE`` to ``BOTTOM``; they are drawn on the first panel."""
    key: Mapping[str, str] = field(default_factory=dict)
    """What colours of panels mean, such as ``{"#800000": "lesion"}``."""

    def __post_init__(self) -> None:
        panels, boxes = self.panels, self.boxes
        if panels.dtype != np.uint8 or panels.ndim != 5 or panels.shape[4] != 3:
            raise ValueError(f"panels must be uint8 [B, P, h, w, 3], not {panels.dtype} {list(panels.shape)}")
        if panels.shape[:2] != (len(self.captions), len(self.titles)):
            raise ValueError(
                f"{list(panels.shape[:2])} panels need as many captions and titles, not "
                f"{[len(self.captions), len(self.titles)]}"
            )
        if boxes.dtype != np.float64 or boxes.ndim != 2 or boxes.shape[1] != COLUMNS:
            raise ValueError(f"boxes must be float64 [K, {COLUMNS}], not {boxes.dtype} {list(boxes.shape)}")
        images, verdicts = boxes[:, IMAGE], boxes[:, VERDICT]
        if not np.isin(images, range(len(panels))).all() or not np.isin(verdicts, range(3)).all():
            raise ValueError("boxes must be of images that there are and have one of three verdicts")
        if not all(_COLOUR.fullmatch(colour) for colour in self.key):
            raise ValueError("colours of the key must be written as #rrggbb")
        if not np.isfinite(np.delete(boxes, SCORE, axis=1)).all():
            raise ValueError("boxes must have finite corners and classes")


def step(height: int, width: int) -> int:
    """Return of how many pixels of an image (H, W), in each direction, its picture has one."""
    return -(-max(height, width) // _LONGEST)


def photos(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images uint8 [B, H, W, channels] as pictures [B, h, w, 3], large ones by means of blocks.

    One or two channels are gray, and of more than three the first three are shown.
    """
    from PIL import Image

    shown = images[..., :3] if images.shape[3] >= 3 else np.repeat(images[..., :1], 3, axis=3)
    every = step(*images.shape[1:3])
    return np.stack([np.asarray(Image.fromarray(np.ascontiguousarray(one)).reduce(every)) for one in shown])


def maps(values: NDArray[Any], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return maps [B, H, W] of classes as pictures [B, h, w, 3] in their colours, of large ones some pixels.

    Args:
        values: Whole numbers from 0 to 255.
        colours: uint8 [256, 3].
    """
    every = step(*values.shape[1:3])
    pictures: NDArray[np.uint8] = colours[values[:, ::every, ::every]]
    return pictures
