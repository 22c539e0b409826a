"""Resizing by two matrix products, so that a graph needs no operator that few runtimes have.

An antialiased resize is linear in the rows and in the columns: ``A_h x A_w'``. The weights are those of
Pillow's bilinear filter (a triangle as wide as the larger of a source and a target pixel, cut at the border
and normalised) and follow from the image's size inside the graph. Values are rounded after each of the two
passes, columns first, as Pillow does. Where the sizes are equal both matrices are the identity, and the
pixels stay as they are to the bit.

Pillow's ``reducing_gap``, with which files are decoded, first shrinks by whole factors where an image is six
times the target or more; JPEG files are decoded at a half, a quarter or an eighth. Neither is in a graph.

Shape letters: N images, H and W of the source, T side of the target.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Fit: TypeAlias = Literal["crop", "stretch", "pad", "exact"]
Side: TypeAlias = "int | torch.SymInt"


class PillowResize(nn.Module):
    """Images of any size -> images of one size, as ``data.decoding.pixels`` fits files.

    Args:
        size: (height, width) of the target.
        fit: ``"crop"`` keeps the centre in the target's proportions, ``"stretch"`` changes them, ``"pad"``
            adds black bars, ``"exact"`` leaves the image, which must have that size.
    """

    def __init__(self, size: tuple[int, int], fit: Fit) -> None:
        super().__init__()
        self.size, self.fit = size, fit

    def forward(self, images: Tensor) -> Tensor:
        """Return whole numbers 0 to 255, float32 [N, channels, T, T'], of such images [N, channels, H, W]."""
        if self.fit == "exact":
            return images
        rows, columns = self._matrices(images.shape[2], images.shape[3], images.device)
        across = torch.floor(images @ columns.T + 0.5)
        return torch.floor(rows @ across + 0.5)

    def _matrices(self, height: Side, width: Side, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the weights of rows [T, H] and of columns [T', W]."""
        tall, wide = self.size
        sides = [torch.arange(side, device=device, dtype=torch.float32) for side in (height, width)]
        h, w = (torch.scalar_tensor(side, dtype=torch.float32, device=device) for side in (height, width))
        zero = torch.zeros((), device=device)
        targets = torch.tensor(float(tall)), torch.tensor(float(wide))
        # Of each side: where the part that is kept begins and how long it is, in source pixels, then the same
        # of what it fills, in target pixels.
        if self.fit == "crop":  # the largest part of the target's proportions
            kept = torch.minimum(h / tall, w / wide)
            down, across = (
                ((side - kept * target) / 2, kept * target, zero, target)
                for side, target in zip((h, w), targets, strict=True)
            )
        elif self.fit == "pad":
            scale = torch.minimum(tall / h, wide / w)
            inner = (torch.clamp(torch.round(side * scale), min=1) for side in (h, w))
            down, across = (
                (zero, side, torch.floor((target - part) / 2), part)
                for side, part, target in zip((h, w), inner, targets, strict=True)
            )
        else:
            down, across = ((zero, side, zero, target) for side, target in zip((h, w), targets, strict=True))
        return triangle(sides[0], h, *down, tall), triangle(sides[1], w, *across, wide)


def triangle(
    places: Tensor, side: Tensor, start: Tensor, length: Tensor, first: Tensor, inner: Tensor, total: int
) -> Tensor:
    """Return the weights of Pillow's bilinear filter along one side, float32 [total, H].

    Args:
        places: 0 to H - 1.
        side: H.
        start: Where the part that is kept begins, in source pixels.
        length: Its length in source pixels.
        first: The target pixel in which it begins.
        inner: Target pixels that it fills; the weights of others are 0.
        total: Target pixels in all.
    """
    step = length / inner
    support = torch.clamp(step, min=1.0)
    row = torch.arange(total, dtype=torch.float32, device=places.device) - first
    centre = start + (row + 0.5) * step
    low = torch.clamp(torch.floor(centre - support + 0.5), min=0)
    high = torch.minimum(torch.floor(centre + support + 0.5), side)
    distance = (places[None, :] + 0.5 - centre[:, None]) / support
    weights = torch.clamp(1 - distance.abs(), min=0)
    within = (places[None, :] >= low[:, None]) & (places[None, :] < high[:, None])
    filled = (row >= 0) & (row < inner)
    weights = weights * (within & filled[:, None]).to(torch.float32)
    return weights / torch.clamp(weights.sum(1, keepdim=True), min=1e-6)


class FixedResize(nn.Module):
    """What ``data.transforms.resize`` does to images of one known size, as constant matrices.

    Args:
        size: (H, W) of the images.
        side: T.
        interpolation: As ``resize`` takes it.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], side: int, interpolation: str) -> None:
        super().__init__()
        self.register_buffer("rows", _along(size[0], side, interpolation))
        self.register_buffer("columns", _along(size[1], side, interpolation).T.contiguous())

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 [N, channels, T, T] of images [N, channels, H, W]."""
        return self.rows @ (images @ self.columns)


def _along(source: int, target: int, interpolation: str) -> Tensor:
    """Return the weights [target, source] with which torch resizes one side."""
    eye = torch.eye(source)[None, None]
    if interpolation == "nearest":
        found = functional.interpolate(eye, (target, source), mode="nearest-exact")
    else:
        found = functional.interpolate(eye, (target, source), mode=interpolation, antialias=True)
    return found[0, 0]
