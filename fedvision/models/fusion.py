"""A network whose tokens are read joined with a Transformer, in one network with one head.

::

                 ┌── extractor ── tokens [B, T, F] ──────────────┐
    images ──────┤                  │ patch = 0                  ├── join ── head ── logits [B, C]
                 └── patches ───────┴── transformer ── [B, D] ───┘
                       patch > 0

The extractor's tokens are the positions of its feature map, or its states. Our Transformer reads those
(``patch = 0``: the hybrid of Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1), those of an earlier
layer (``early``), or patches of the image itself (``patch > 0``: two views side by side), and returns its
class token. What else is known of an image (``[model.inputs]``) it reads as further tokens behind those, or
alone with ``extractor = "none"``. In its place any backbone may look at the images and return features [B, D]
(``transformer``). Three ways to join:

``concat``           both, side by side: the extractor's mean and the class token
``gated``            a blend for each feature, ``g p + (1 - g) t`` with ``g = sigmoid(W [p, t])``, p the
                     extractor's mean and t the class token (Arevalo et al. 2017, arXiv 1702.01992)
``cross-attention``  the class token reads the extractor tokens, ``t + attention(t, tokens)`` (as between the
                     branches of Chen et al. 2021, arXiv 2103.14899)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from fedvision.inputs import Batch, InputConfig
from fedvision.models.base import Backbone, with_linear_head
from fedvision.models.checks import one_of
from fedvision.models.cnn import ConvFeatures
from fedvision.models.fusion_modes import JOINS, Join
from fedvision.models.input_tokens import InputTokens, Tokens, separate
from fedvision.models.inputs_alone import inputs_alone
from fedvision.models.parts import Encoder, Extractor, build_encoder, build_extractor
from fedvision.models.resnet import SHAPES, residual_features
from fedvision.models.rnn import RecurrentFeatures
from fedvision.models.tokens import Features, as_tokens, patch_grid, patches
from fedvision.models.transformer import Transformer


def fusion(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    extractor: str | Mapping[str, Any] = "cnn",
    width: int | None = None,
    early: str = "",
    transformer: str | Mapping[str, Any] | None = None,
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
        extractor: ``"cnn"``, ``"rnn"``, ``"resnet8"``, ``"resnet18"`` or ``"resnet20"``, without its head, or
            another network by name or as a table ``{ use, weights, train, layer }``: the output of ``layer``,
            by default its last one, are the tokens; the others are as in ``[model]``, and further keys that
            network's. ``"none"``: no pixel is read, only ``[model.inputs]``.
        width: The ``width`` (of ``"rnn"`` the ``hidden``) of an extractor that is one of the five names.
        early: A layer of the extractor, such as ``"layer2"``, that our Transformer reads, and the join not.
        transformer: Another one than ours, which looks at the images itself: a name or a table.
        patch: Side in pixels of the patches our Transformer reads; 0 lets it read the extractor's tokens.
        dim: D, features of a token in our Transformer, a multiple of ``heads``.
        depth: Encoder blocks of our Transformer.
        heads: Attention heads of our Transformer and of ``join = "cross-attention"``.
        join: ``"concat"``, ``"gated"`` or ``"cross-attention"``.
        dropout: Share of features that training drops in our Transformer.
        inputs: What our Transformer reads beside.

    Raises:
        ValueError: A key is out of range or has no use here, or there is nothing to read.
        ConfigError: A part cannot be built.
    """
    one_of("join", join, JOINS)
    if extractor == "none":
        pixels = {"early": early, "transformer": transformer, "patch": patch, "width": width}
        _check_alone({**pixels, "join": "" if join == "concat" else join})
        alone = inputs_alone(inputs, dim=dim, depth=depth, heads=heads, dropout=dropout)
        return with_linear_head(alone, num_classes)
    features = _features(extractor, width, early, in_channels, image_size)
    if transformer is not None:
        ours = {"early": early, "patch": patch, "dim": dim, "depth": depth, "dropout": dropout}
        _check_unused(ours, inputs)
        encoder = build_encoder("transformer", transformer, in_channels, image_size)
        joined = JOINS[join](features.channels, encoder.out_features, heads)
        return with_linear_head(FusionBackbone(features, encoder, joined, patch), num_classes)
    grid, seen = _seen(features, early, patch, in_channels, image_size)
    further = InputTokens(inputs, dim) if inputs else None
    own = Transformer(seen, grid, dim=dim, depth=depth, heads=heads, dropout=dropout)
    joined = JOINS[join](features.channels, dim, heads)
    return with_linear_head(FusionBackbone(features, own, joined, patch, further), num_classes)


def _check_alone(keys: Mapping[str, object]) -> None:
    """Refuse keys that need an extractor where there is none."""
    if told := [key for key, value in keys.items() if value]:
        raise ValueError(f"{told[0]} needs pixels, and extractor = 'none' reads none; leave one of them out")


def _features(
    extractor: str | Mapping[str, Any],
    width: int | None,
    early: str,
    in_channels: int,
    image_size: tuple[int, int],
) -> Features:
    """Return the extractor."""
    if isinstance(extractor, str) and extractor in _EXTRACTORS:
        if early:
            raise ValueError(
                f'early needs the extractor as a table, extractor = {{ use = "{extractor}" }}, whose layers '
                "have names"
            )
        default, build = _EXTRACTORS[extractor]
        return build(in_channels, image_size, default if width is None else width)
    if width is not None:
        raise ValueError(
            "width is for an extractor by one of the five names; set it in the extractor's table"
        )
    return build_extractor("extractor", extractor, in_channels, image_size, early)


def _seen(
    features: Features, early: str, patch: int, in_channels: int, image_size: tuple[int, int]
) -> tuple[tuple[int, int], int]:
    """Return the grid of the tokens that our Transformer reads, and the features of one."""
    if patch and early:
        raise ValueError("patch and early both say what the Transformer reads; leave one out")
    if patch:
        return patch_grid(image_size, patch), in_channels * patch**2
    if isinstance(features, Extractor):
        return features.layers[0].grid, features.layers[0].channels
    return features.grid, features.channels


def _check_unused(ours: Mapping[str, Any], inputs: Mapping[str, InputConfig]) -> None:
    """Refuse what only our Transformer reads where another network takes its place."""
    usual = inspect.signature(fusion).parameters
    told = [key for key, value in ours.items() if value != usual[key].default]
    if told := [*told, *(["[model.inputs]"] if inputs else [])]:
        raise ValueError(
            f"{told[0]} is for our own Transformer, and transformer names another; leave one out"
        )


class _Extractor(NamedTuple):
    """How to build an extractor: its default width and ``build(in_channels, image_size, width)``."""

    width: int
    build: Callable[[int, tuple[int, int], int], Features]


class FusionBackbone(Backbone):
    """Extractor and Transformer, and a join.

    Args:
        extractor: Images -> a map or tokens.
        transformer: Ours, which reads tokens, or an ``Encoder``, which looks at the images.
        join: Of both.
        patch: Side in pixels of the patches that our Transformer reads; 0 where it reads the extractor.
        further: Makes tokens for our Transformer of what else is known of an image.
    """

    def __init__(
        self,
        extractor: Features,
        transformer: nn.Module,
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
        tapped = self.extractor if isinstance(self.extractor, Extractor) else None
        found = tapped.outputs(images) if tapped and tapped.layers[1:] else (self.extractor(images),)
        tokens = [as_tokens(features) for features in found]
        x: torch.Tensor = self.join(tokens[-1], self._class_token(images, tokens[0], further))
        return x

    def _class_token(
        self, images: torch.Tensor, tokens: torch.Tensor, further: Tokens | None
    ) -> torch.Tensor:
        """Return what the Transformer makes of all that it sees, [B, D].

        Args:
            images: [B, in_channels, H, W], which a network of its own looks at.
            tokens: Those of the extractor for it [B, T, F].
            further: Tokens behind those, where there are any.
        """
        if isinstance(self.transformer, Encoder):
            found: torch.Tensor = self.transformer(images)
            return found
        seen = patches(images, (self.patch, self.patch)) if self.patch else tokens
        read: torch.Tensor = self.transformer(seen, further)
        return read


_EXTRACTORS: Mapping[str, _Extractor] = {
    "cnn": _Extractor(32, ConvFeatures),
    "rnn": _Extractor(128, lambda channels, size, hidden: RecurrentFeatures(channels, size, hidden=hidden)),
    **{
        name: _Extractor(shape.width, partial(residual_features, shape.blocks))
        for name, shape in SHAPES.items()
    },
}
