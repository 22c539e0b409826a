"""Images as sequences: patches, positions, and what feature extractors have in common.

Shape letters: B batch, T tokens, D features of a token; a grid (h, w) of tokens is read row by row, T = h w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from fedvision.models.checks import one_of

POSITIONALS = ("learned", "sine")


class Features(nn.Module):
    """A feature extractor: images [B, in_channels, H, W] -> map [B, D, h, w] or tokens [B, T, D]."""

    channels: int
    """D."""
    grid: tuple[int, int]
    """(h, w) of the map, or of the tokens."""


def as_tokens(features: torch.Tensor) -> torch.Tensor:
    """Return a feature map [B, D, h, w] as tokens [B, h w, D]; tokens pass as they are."""
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def as_map(features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return tokens [B, h w, D] as a feature map [B, D, h, w]; a map passes as it is."""
    return features if features.ndim == 4 else features.transpose(1, 2).reshape(features.shape[0], -1, *grid)


def places(shape: Sequence[int], image_size: Sequence[int]) -> tuple[int, int]:
    """Return which dimensions of a feature map are its places: (2, 3) or, where channels come last, (1, 2).

    They are those that have the image's proportions, (2, 3) where both do.

    Args:
        shape: Four sizes, the first that of the batch.
        image_size: (H, W).
    """
    return (1, 2) if _stretch(shape[1:3], image_size) < _stretch(shape[2:4], image_size) else (2, 3)


def _stretch(sides: Sequence[int], size: Sequence[int]) -> float:
    """Return how far two sides are from an image's proportions, 0 where they have them."""
    return abs(math.log(sides[0] * size[1] / (sides[1] * size[0])))


def patch_grid(image_size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return the grid (h, w) of square patches of an image.

    Raises:
        ValueError: The patch's side does not divide the image's.
    """
    height, width = image_size
    common = math.gcd(height, width)
    if patch < 1 or common % patch:
        fits = min((p for p in range(1, common + 1) if common % p == 0), key=lambda p: abs(p - patch))
        raise ValueError(
            f"patch = {patch} does not divide an image of {height} x {width}; the nearest that does is {fits}"
        )
    return height // patch, width // patch


def patches(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cut images into patches.

    Args:
        images: [B, channels, H, W].
        size: Height and width of a patch, dividing H and W; (1, W) gives the image's rows.

    Returns:
        [B, T, channels * height * width], patches row by row, each in the order of an image tensor.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // size[0], width // size[1]
    cut = images.reshape(batch, channels, rows, size[0], columns, size[1])
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * size[0] * size[1])


def sine_positions(grid: tuple[int, int], dim: int) -> torch.Tensor:
    """Return fixed positions [h w, dim] of a grid (Vaswani et al. 2017, arXiv 1706.03762, in two dimensions).

    One half of the features codes the row, the other the column: ``sin(p / 10000^(i / (dim / 4)))`` and the
    cosine of the same for i = 0 .. dim / 4 - 1. The code of Beyer et al. 2022, arXiv 2205.01580, differs: it
    divides i by dim / 4 - 1, so that the lowest frequency is 1 / 10000 itself, and puts the column first.

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"positional = 'sine' needs a dim that is a multiple of 4, not {dim}")
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    frequencies = 10000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    angles = [side.flatten()[:, None] * frequencies for side in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


class Positions(nn.Module):
    """Adds to each token [B, T, D] its position.

    Args:
        grid: (h, w) with h w = T.
        dim: D.
        positional: ``"learned"`` (a parameter, normal with deviation 0.02 at first) or ``"sine"`` (fixed, no
            part of the state, so it never travels).

    Raises:
        ValueError: ``positional`` is unknown, or ``dim`` does not suit it.
    """

    table: torch.Tensor

    def __init__(self, grid: tuple[int, int], dim: int, positional: str) -> None:
        super().__init__()
        one_of("positional", positional, POSITIONALS)
        if positional == "learned":
            self.table = nn.Parameter(torch.empty(grid[0] * grid[1], dim).normal_(std=0.02))
        else:
            self.register_buffer("table", sine_positions(grid, dim), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        return tokens + self.table
