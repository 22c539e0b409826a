"""A Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): patches as tokens, no convolution.

Small by default (0.14 million parameters), for images of 28 to 64 pixels; with few images a network that has
convolutions learns faster.
"""

from __future__ import annotations

import torch
from torch import nn

from fedvision.models.base import Backbone, with_linear_head
from fedvision.models.tokens import patch_grid, patches
from fedvision.models.transformer import Transformer


def vit(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    patch: int = 4,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: float = 2.0,
    dropout: float = 0.0,
    positional: str = "learned",
    pool: str = "class",
) -> nn.Module:
    """Build the network, images [B, in_channels, H, W] -> logits [B, C].

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W).
        patch: Side of a square patch in pixels; must divide H and W.
        dim: Features of a token, a multiple of ``heads``.
        depth: Encoder blocks.
        heads: Attention heads.
        mlp_ratio: Hidden units of a block's perceptron / ``dim``.
        dropout: Share of features that training drops.
        positional: ``"learned"`` or ``"sine"``.
        pool: ``"class"`` token or ``"mean"`` of all tokens.

    Raises:
        ValueError: A key is out of range, or the patch does not divide the image.
    """
    grid = patch_grid(image_size, patch)
    transformer = Transformer(
        in_channels * patch**2,
        grid,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        dropout=dropout,
        positional=positional,
        pool=pool,
    )
    return with_linear_head(VitBackbone(transformer, patch, dim), num_classes)


class VitBackbone(Backbone):
    """Patches through an encoder."""

    def __init__(self, transformer: Transformer, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.transformer = transformer
        self.out_features = dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, dim]."""
        x: torch.Tensor = self.transformer(patches(images, (self.patch, self.patch)))
        return x
