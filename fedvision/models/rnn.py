"""A recurrent network that reads an image as a sequence: row after row, or patch after patch.

The cell is a GRU (Cho et al. 2014, arXiv 1406.1078) or an LSTM (Hochreiter & Schmidhuber 1997). Instead of
the image it may read the feature map of another network (``reads``), such as a pretrained one that stays as
it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedvision.models.base import Backbone, with_linear_head
from fedvision.models.checks import one_of
from fedvision.models.init import recurrent
from fedvision.models.parts import build_extractor
from fedvision.models.tokens import Features, as_map, patch_grid, patches
from fedvision.ranges import check_range

_CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


def rnn(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    tokens: str = "rows",
    patch: int = 4,
    cell: str = "gru",
    hidden: int = 128,
    layers: int = 1,
    bidirectional: bool = False,
    pool: str = "last",
    dropout: float = 0.0,
    reads: str | Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the network, images [B, in_channels, H, W] -> logits [B, C].

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W).
        tokens: ``"rows"`` reads H rows of W pixels, ``"patches"`` reads square patches row by row.
        patch: Side of a patch in pixels; must divide H and W; unused for rows.
        cell: ``"gru"`` or ``"lstm"``.
        hidden: Units of a layer, in each direction.
        layers: Layers on top of each other.
        bidirectional: Read in both directions and join the states.
        pool: What the head sees: the ``"last"`` state of each direction, or the ``"mean"`` over all states.
        dropout: Share of the head's inputs that training drops.
        reads: A network whose last feature map takes the place of the image, its rows or patches being read:
            a name, or a table ``{ use = "efficientnet-lite0", weights = "lite0.pth", train = "none" }`` as
            for a fusion's ``extractor``. Tokens of a transformer are rows of one place each.

    Raises:
        ValueError: A key is out of range, or the patch does not divide the image.
        ConfigError: The network in ``reads`` cannot be built or has no such map.
    """
    one_of("pool", pool, ("last", "mean"))
    check_range(at_least=0, below=1, dropout=dropout)
    features = RecurrentFeatures(
        in_channels,
        image_size,
        tokens=tokens,
        patch=patch,
        cell=cell,
        hidden=hidden,
        layers=layers,
        bidirectional=bidirectional,
        reads=None if reads is None else build_extractor("reads", reads, in_channels, image_size),
    )
    return with_linear_head(RnnBackbone(features, pool, dropout), num_classes)


class RecurrentFeatures(Features):
    """The recurrent layers, images [B, in_channels, H, W] -> a state for each token [B, T, D]."""

    def __init__(
        self,
        in_channels: int,
        image_size: tuple[int, int],
        *,
        tokens: str = "rows",
        patch: int = 4,
        cell: str = "gru",
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = False,
        reads: Features | None = None,
    ) -> None:
        super().__init__()
        self.reads = reads
        if reads is not None:
            in_channels, image_size = reads.channels, reads.grid
        check_range(at_least=1, patch=patch, hidden=hidden, layers=layers)
        one_of("tokens", tokens, ("rows", "patches"))
        one_of("cell", cell, _CELLS)
        rows = tokens == "rows"
        self.size = (1, image_size[1]) if rows else (patch, patch)
        self.grid = (image_size[0], 1) if rows else patch_grid(image_size, patch)
        self.hidden = hidden
        self.channels = hidden * (2 if bidirectional else 1)
        inputs = in_channels * self.size[0] * self.size[1]
        self.recurrent = recurrent(
            _CELLS[cell](inputs, hidden, layers, batch_first=True, bidirectional=bidirectional)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last layer's states; those of the second direction follow those of the first in D."""
        if self.reads is not None:
            images = as_map(self.reads(images), self.reads.grid)
        states: torch.Tensor = self.recurrent(patches(images, self.size))[0]
        return states

    def last(self, states: torch.Tensor) -> torch.Tensor:
        """Return each direction's state [B, D] after it has read the whole image."""
        # The second direction reads from the end: it has read everything at the first token.
        return torch.cat([states[:, -1, : self.hidden], states[:, 0, self.hidden :]], dim=1)


class RnnBackbone(Backbone):
    """The recurrent layers, pooled."""

    def __init__(self, features: RecurrentFeatures, pool: str, dropout: float) -> None:
        super().__init__()
        self.pool = pool
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.out_features = features.channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, D]."""
        states = self.features(images)
        pooled = self.features.last(states) if self.pool == "last" else states.mean(1)
        x: torch.Tensor = self.dropout(pooled)
        return x
