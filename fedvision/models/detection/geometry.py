"""Places on feature maps, anchors around them, and boxes relative to them.

A place stands for the rectangle of the image that is its share of the map, and its centre is that of the
rectangle; so maps whose sides do not divide the image's fit as well. Boxes are corners: left, top, right,
bottom.

Shape letters: B batch, M boxes of an image at most, P places or anchors of all maps, A anchors of a place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torchvision.ops import box_iou

BACKGROUND, BETWEEN = -1, -2
"""In place of a box's number: an anchor without object; one that overlaps too much to be background and too
little to be an object's."""
_LARGEST = math.log(1000 / 16)
"""Logarithm of the factor by which a box may be larger than its anchor."""


class Places(NamedTuple):
    """The places of several maps, map by map and row by row."""

    centres: torch.Tensor
    """float32 [P, 2]: x and y in pixels of the image."""
    strides: torch.Tensor
    """float32 [P, 2]: width and height of what a place stands for."""
    levels: torch.Tensor
    """int64 [P]: the map, from 0."""


def places(maps: Sequence[torch.Tensor], size: tuple[int, int]) -> Places:
    """Return the places of maps [B, channels, h, w] of images (H, W)."""
    centres, strides, levels = [], [], []
    for level, one in enumerate(maps):
        (rows, columns), device = one.shape[2:], one.device
        step = torch.tensor([size[1] / columns, size[0] / rows], device=device)
        down, across = torch.meshgrid(
            torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
        )
        centres.append((torch.stack([across, down], -1).reshape(-1, 2) + 0.5) * step)
        strides.append(step.expand(rows * columns, 2))
        levels.append(torch.full((rows * columns,), level, device=device))
    return Places(torch.cat(centres), torch.cat(strides), torch.cat(levels))


def anchors(found: Places, sides: torch.Tensor) -> torch.Tensor:
    """Return anchors [P A, 4], those of a place one after the other.

    Args:
        found: Places.
        sides: Width and height [A, 2] in shares of what a place stands for; or [P, A, 2].
    """
    half = 0.5 * sides * found.strides[:, None]
    centres = found.centres[:, None]
    return torch.cat([centres - half, centres + half], -1).reshape(-1, 4)


def encoded(boxes: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
    """Return boxes [..., 4] relative to anchors [..., 4]: the centre's distance, the logarithm of the size.

    In shares of the anchor's sides, as in R-CNN (Girshick et al. 2014, arXiv 1311.2524, appendix C).
    """
    centre, side = _centre_and_side(around)
    own_centre, own_side = _centre_and_side(boxes)
    return torch.cat([(own_centre - centre) / side, (own_side / side).log()], -1)


def decoded(deltas: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
    """Return the boxes of which ``encoded`` makes these numbers; no box is more than 62.5 anchors large."""
    centre, side = _centre_and_side(around)
    middle = centre + deltas[..., :2] * side
    half = 0.5 * side * deltas[..., 2:].clamp(max=_LARGEST).exp()
    return torch.cat([middle - half, middle + half], -1)


def _centre_and_side(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def clipped(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return boxes [..., 4] cut at the borders of images (H, W)."""
    most = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return torch.minimum(boxes.clamp(min=0), most)


def of_boxes(values: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """Return the value of the box of each anchor; of those without one it is that of the first box.

    Args:
        values: [B, M] or [B, M, n].
        matched: int64 [B, P]: numbers of boxes, negative where there is none.
    """
    numbers = matched.clamp(min=0)
    if values.dim() == 2:
        return values.gather(1, numbers)
    return values.gather(1, numbers[..., None].expand(-1, -1, values.shape[2]))


def matched(
    boxes: torch.Tensor,
    present: torch.Tensor,
    around: torch.Tensor,
    *,
    above: float,
    below: float,
    best_of_each: bool = True,
) -> torch.Tensor:
    """Return the box that each anchor is for, by how much they overlap (Ren et al. 2015, arXiv 1506.01497).

    Args:
        boxes: [B, M, 4].
        present: bool [B, M].
        around: Anchors [P, 4], or [B, P, 4].
        above: IoU from which on an anchor is for the box that it overlaps most.
        below: IoU below which it is background.
        best_of_each: Whether the anchors that overlap a box most are also for what they overlap most, so that
            no box that any anchor touches is without one.

    Returns:
        int64 [B, P]: the number of a box, ``BACKGROUND`` or ``BETWEEN``.
    """
    overlap = torch.stack(
        [
            box_iou(own, around[place] if around.dim() == 3 else around)
            for place, own in enumerate(boxes.to(around.dtype))
        ]
    )  # [B, M, P]
    overlap = overlap.masked_fill(~present[..., None], -1)
    best, number = overlap.max(1)
    found = number.masked_fill(best < above, BETWEEN).masked_fill(best < below, BACKGROUND)
    if best_of_each:
        highest = overlap.amax(2, keepdim=True)
        chosen = ((overlap == highest) & (highest > 0)).any(1)
        found = torch.where(chosen, number, found)
    return found
