"""A convolutional or recurrent network joined with a Transformer, in one network with one head.

::

                 ┌── extractor ── tokens [B, T, F] ──────────────┐
    images ──────┤                  │ patch = 0                  ├── join ── head ── logits [B, C]
                 └── patches ───────┴── transformer ── [B, D] ───┘
                       patch > 0

The extractor's tokens are the positions of its feature map, or its states. The Transformer reads those tokens
(``patch = 0``: the hybrid of Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1) or patches of the image
itself (``patch > 0``: two views side by side) and returns its class token. What else is known of an image
(``[model.inputs]``) it reads as further tokens behind those, or alone with ``extractor = "none"``. Three ways
to join:

``concat``           both, side by side: the extractor's mean and the class token
``gated``            a blend for each feature, ``g p + (1 - g) t`` with ``g = sigmoid(W [p, t])``, p the
                     extractor's mean and t the class token (Arevalo et al. 2017, arXiv 1702.01992)
``cross-attention``  the class token reads the extractor tokens, ``t + attention(t, tokens)`` (as between the
                     branches of Chen et al. 2021, arXiv 2103.14899)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from fedvision.inputs import Batch, InputConfig
from fedvision.models.base import Backbone, with_linear_head
from fedvision.models.checks import one_of
from fedvision.models.cnn import ConvFeatures
from fedvision.models.fusion_modes import JOINS, Join
from fedvision.models.input_tokens import InputTokens, separate
from fedvision.models.inputs_alone import inputs_alone
from fedvision.models.resnet import SHAPES, residual_features
from fedvision.models.rnn import RecurrentFeatures
from fedvision.models.tokens import Features, as_tokens, patch_grid, patches
from fedvision.models.transformer import Transformer


def fusion(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    extractor: str = "cnn",
    width: int | None = None,
    patch: int = 0,
    dim: int = 64,
    depth: int = 2,
    heads: int = 4,
    join: str = "concat",
    dropout: float = 0.0,
    inputs: Mapping[str, InputConfig] = MappingProxyType({}),
) -> nn.Module:
    """Build the network, images [B, in_channels, H, W] -> logits [B, C].

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W).
        extractor: ``"cnn"``, ``"rnn"``, ``"resnet8"``, ``"resnet18"`` or ``"resnet20"``, without its head; or
            ``"none"``: no pixel is read, only ``[model.inputs]``.
        width: The extractor's ``width`` (for ``"rnn"`` its ``hidden``); left out, its own default.
        patch: Side in pixels of the patches the Transformer reads; 0 lets it read the extractor's tokens.
        dim: D, features of a token in the Transformer, a multiple of ``heads``.
        depth: Encoder blocks.
        heads: Attention heads.
        join: ``"concat"``, ``"gated"`` or ``"cross-attention"``.
        dropout: Share of features that training drops in the Transformer.
        inputs: What the Transformer reads beside.

    Raises:
        ValueError: A key is out of range, the patch does not divide the image, or there is nothing to read.
    """
    one_of("extractor", extractor, (*_EXTRACTORS, "none"))
    one_of("join", join, JOINS)
    if extractor == "none":
        alone = inputs_alone(inputs, dim=dim, depth=depth, heads=heads, dropout=dropout)
        return with_linear_head(alone, num_classes)
    default, build = _EXTRACTORS[extractor]
    features = build(in_channels, image_size, default if width is None else width)
    grid = patch_grid(image_size, patch) if patch else features.grid
    seen = in_channels * patch**2 if patch else features.channels
    further = InputTokens(inputs, dim) if inputs else None
    transformer = Transformer(seen, grid, dim=dim, depth=depth, heads=heads, dropout=dropout)
    joined = JOINS[join](features.channels, dim, heads)
    return with_linear_head(FusionBackbone(features, transformer, joined, patch, further), num_classes)


class _Extractor(NamedTuple):
    """How to build an extractor: its default width and ``build(in_channels, image_size, width)``."""

    width: int
    build: Callable[[int, tuple[int, int], int], Features]


class FusionBackbone(Backbone):
    """Extractor and Transformer, and a join."""

    def __init__(
        self,
        extractor: Features,
        transformer: Transformer,
        join: Join,
        patch: int,
        further: InputTokens | None = None,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.extractor = extractor
        self.further = further
        self.transformer = transformer
        self.join = join
        self.out_features = join.out

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return [B, join.out]."""
        images, further = separate(batch, self.further)
        tokens = as_tokens(self.extractor(images))
        seen = patches(images, (self.patch, self.patch)) if self.patch else tokens
        x: torch.Tensor = self.join(tokens, self.transformer(seen, further))
        return x


_EXTRACTORS: Mapping[str, _Extractor] = {
    "cnn": _Extractor(32, ConvFeatures),
    "rnn": _Extractor(128, lambda channels, size, hidden: RecurrentFeatures(channels, size, hidden=hidden)),
    **{
        name: _Extractor(shape.width, partial(residual_features, shape.blocks))
        for name, shape in SHAPES.items()
    },
}
