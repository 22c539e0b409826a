"""Boxes that move with the pixels of their images, a batch at a time.

Each step does to corners what the function of the same name in ``fedvision.data.transforms`` does to pixels.
A rotated box becomes the smallest upright one around its corners, as in torchvision's
``transforms.v2.functional.rotate_bounding_boxes``; it is wider than what it surrounds, the more so the
larger the angle. What cutout blanks stays in the box, which then surrounds an object that is partly covered.

Shape letters: B images, M boxes at most.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedvision.config import TransformConfig

LEAST = 0.25
"""Share of a box that must be left to see: one of which less is inside of the image and not blanked is
dropped, so that no network is trained to find what it cannot see."""


def apply_to_boxes(
    corners: Tensor,
    present: Tensor,
    drawn: Mapping[str, Tensor],
    config: TransformConfig,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return boxes as they are in images that ``BatchTransform.apply`` changed with the same draws.

    They are clipped to the image also where nothing is drawn.

    Args:
        corners: [B, M, 4]: left, top, right, bottom in pixels of the images before.
        present: bool [B, M]: which places hold a box.
        drawn: What happens to each image, by name, last dimension B.
        config: The experiment's ``[transforms]``.
        size: (H, W) of the images.

    Returns:
        Corners [B, M, 4], and which places hold a box of which at least ``LEAST`` is left, bool [B, M].
    """
    own = {name: values.to(corners.device) for name, values in drawn.items()}
    left = _area(corners)
    corners = _clipped(corners, size)
    left = _area(corners) / left
    if "flip" in own:
        corners = _flipped(corners, own["flip"], size)
    if "crop" in own:
        whole = _area(corners)
        corners = _clipped(_shifted(corners, config.crop - own["crop"].flip(0)), size)
        left = left * _area(corners) / whole
    if "rotation" in own:
        turned = _rotated(corners, own["rotation"], size)
        corners = _clipped(turned, size)
        left = left * _area(corners) / _area(turned)
    if "cutout" in own:
        left = left * (1 - _covered(corners, own["cutout"], config.cutout) / _area(corners))
    # Of a box without an area the share is 0 / 0, which is no number and not enough.
    return corners, present & (left >= LEAST)


def _area(corners: Tensor) -> Tensor:
    """Return the areas [B, M] of boxes [B, M, 4]."""
    return (corners[..., 2:] - corners[..., :2]).prod(2)


def _clipped(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Return what of each box lies inside of images of (H, W); nothing is a box without an area."""
    height, width = size
    return torch.stack([corners[..., place].clamp(0, (width, height)[place % 2]) for place in range(4)], 2)


def _flipped(corners: Tensor, mirrored: Tensor, size: tuple[int, int]) -> Tensor:
    """Mirror the boxes of those images where ``mirrored`` (bool [B]) says so."""
    left, top, right, bottom = corners.unbind(2)
    return torch.where(
        mirrored[:, None, None], torch.stack([size[1] - right, top, size[1] - left, bottom], 2), corners
    )


def _shifted(corners: Tensor, by: Tensor) -> Tensor:
    """Move the boxes of each image by pixels [2, B], to the right and down."""
    return corners + by.T.to(corners.dtype).repeat(1, 2)[:, None]


def _rotated(corners: Tensor, degrees: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes around those rotated counter-clockwise about the image's centre, by ``degrees`` [B]."""
    radians = torch.deg2rad(degrees.to(corners.dtype))[:, None, None]
    height, width = size
    # The four corners of each box, [B, M, 4], y pointing down.
    x = corners[..., [0, 2, 2, 0]] - width / 2
    y = corners[..., [1, 1, 3, 3]] - height / 2
    turned_x = radians.cos() * x + radians.sin() * y + width / 2
    turned_y = radians.cos() * y - radians.sin() * x + height / 2
    return torch.stack([turned_x.amin(2), turned_y.amin(2), turned_x.amax(2), turned_y.amax(2)], 2)


def _covered(corners: Tensor, centre: Tensor, side: int) -> Tensor:
    """Return the area [B, M] of each box that a square about a pixel (row, column) [2, B] covers."""
    first = (centre.flip(0).T - side // 2).to(corners.dtype)[:, None]
    common = torch.minimum(corners[..., 2:], first + side) - torch.maximum(corners[..., :2], first)
    return common.clamp(min=0).prod(2)
