"""Boxes of images as one array [N, 1 + M, 7], and what is read from it.

An image has a row that tells how many boxes it has and how its pixels came about, then its boxes, then zeros
up to the M boxes of the image with most of them. So targets of unequal length are an array like any other:
shards, shuffling and files know nothing of boxes.

Coordinates are pixels of the image as its file has it, x to the right and y down from the corner at (0, 0),
width and height, as COCO has them: so measurements rest on the numbers that were annotated. ``placed`` gives
them in the pixels that a network sees.

Shape letters: N or B images, M boxes at most, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

COUNT, X_SCALE, Y_SCALE, X_SHIFT, Y_SHIFT, IMAGE_WIDTH, IMAGE_HEIGHT = range(7)
"""Columns of an image's first row: how many boxes it has; by what coordinates are multiplied, and what is
then added, to give pixels of the decoded image; width and height of the image in its file."""
CLASS, X, Y, WIDTH, HEIGHT, AREA, CROWD = range(7)
"""Columns of a box: its class from 0; corner and size; the area of the object, at most that of the box; and
whether it surrounds a crowd, in which no object is told from another (1) or not (0)."""
COLUMNS = 7
Boxes = NDArray[np.float64]
"""[N, 1 + M, 7]."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How the pixels of an image's file became those of the decoded image."""

    width: int
    """Of the image in its file, pixels."""
    height: int
    scale: tuple[float, float] = (1.0, 1.0)
    """By which x and y are multiplied."""
    shift: tuple[float, float] = (0.0, 0.0)
    """What is then added to them, in pixels of the decoded image."""


def packed(boxes: Sequence[Boxes], placements: Sequence[Placement]) -> Boxes:
    """Return the targets of N images.

    Args:
        boxes: [N] of float64 [m, 7] by the columns ``CLASS`` to ``CROWD``; m = 0 is an image of nothing.
        placements: [N].

    Returns:
        float64 [N, 1 + M, 7], M the most boxes of an image, at least 1.
    """
    most = max((len(one) for one in boxes), default=0)
    targets = np.zeros((len(boxes), 1 + max(1, most), COLUMNS))
    for row, own, place in zip(targets, boxes, placements, strict=True):
        row[0] = [len(own), *place.scale, *place.shift, place.width, place.height]
        row[1 : 1 + len(own)] = np.asarray(own, np.float64).reshape(-1, COLUMNS)
    return targets


def are_boxes(targets: NDArray[np.generic]) -> bool:
    """Return whether targets have the form that ``packed`` gives them."""
    return targets.ndim == 3 and targets.shape[1] > 1 and targets.shape[2] == COLUMNS


def present(targets: Boxes) -> NDArray[np.bool_]:
    """Return which places hold a box: bool [N, M]."""
    filled: NDArray[np.bool_] = np.arange(1, targets.shape[1]) <= targets[:, 0, COUNT, None]
    return filled


def class_table(targets: Boxes, num_classes: int) -> NDArray[np.int64]:
    """Return how many boxes of each class an image has, crowds left out: int64 [N, C]."""
    counted = present(targets) & (targets[:, 1:, CROWD] == 0)
    image, place = np.nonzero(counted)
    cell = image * num_classes + targets[image, place + 1, CLASS].astype(np.int64)
    table: NDArray[np.int64] = np.bincount(cell, minlength=len(targets) * num_classes)
    return table.reshape(len(targets), num_classes)


def placed(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the boxes of a batch in the pixels of its images.

    Args:
        targets: float64 [B, 1 + M, 7].

    Returns:
        Corners (left, top, right, bottom) float64 [B, M, 4], and which places hold a box, bool [B, M].
    """
    head, boxes = targets[:, :1], targets[:, 1:]
    scale, shift = head[..., X_SCALE : Y_SCALE + 1], head[..., X_SHIFT : Y_SHIFT + 1]
    corner = boxes[..., X : Y + 1]
    corners = torch.cat([corner, corner + boxes[..., WIDTH : HEIGHT + 1]], 2)
    places = torch.arange(boxes.shape[1], device=targets.device)
    return corners * scale.repeat(1, 1, 2) + shift.repeat(1, 1, 2), places < head[..., COUNT]


def with_corners(targets: torch.Tensor, corners: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return targets whose boxes were moved with the pixels of the images, those that are kept first.

    The result has coordinates of the decoded image, which from then on stands for the file's, and areas of
    the boxes: it is for training, which looks at neither areas nor files.

    Args:
        targets: float64 [B, 1 + M, 7], before.
        corners: [B, M, 4] in pixels of the decoded images, after.
        kept: bool [B, M]: boxes of which something is left.
    """
    moved = targets.clone()
    size = corners[..., 2:] - corners[..., :2]
    moved[:, 1:, X : Y + 1], moved[:, 1:, WIDTH : HEIGHT + 1] = corners[..., :2], size
    moved[:, 1:, AREA] = size.prod(2)
    order = torch.argsort(kept.to(torch.int8), dim=1, descending=True, stable=True)
    ranked = moved[:, 1:].gather(1, order[..., None].expand(-1, -1, COLUMNS))
    moved[:, 1:] = torch.where(kept.gather(1, order)[..., None], ranked, torch.zeros_like(ranked))
    moved[:, 0, COUNT] = kept.sum(1).to(moved.dtype)
    moved[:, 0, X_SCALE : Y_SCALE + 1], moved[:, 0, X_SHIFT : Y_SHIFT + 1] = 1.0, 0.0
    return moved
