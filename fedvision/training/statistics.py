"""Statistics: named sums over a client's training images that need no training.

A statistic is a function ``(model, data, **arguments) -> {name: tensor}`` of the registry's kind
``statistic``. One with a parameter ``tensors`` gets what the query sent beside the model. What it returns is
added over the clients, exactly (``aggregation.fixed_point``), and the server gets the total alone. So it must
return sums (counts, sums of features, sums of squares) and never means: those are derived from the sums.
Names and shapes depend on the model and the classes alone, and a client without images of a class has zeros
for it.

Shape letters: B batch, C classes, N examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from fedvision import registry
from fedvision.data.shards import Shard
from fedvision.errors import PluginError
from fedvision.inputs import Batch
from fedvision.models.base import halves
from fedvision.models.state import floating
from fedvision.training.features import FeatureExtractor
from fedvision.training.forward import ForwardSettings
from fedvision.types import PluginSpec, Query


@dataclass(frozen=True, kw_only=True)
class LocalData:
    """A client's training images as a statistic sees them."""

    shard: Shard
    """Images and labels."""
    settings: ForwardSettings
    """Task, normalisation and device."""
    num_classes: int
    """C."""
    batch_size: int = 100
    """Images a batch."""
    sharpness: float = 1.0
    """s; predicted probabilities are those of s z for the network's logits z."""
    held_out: Shard | None = None
    """Images that the client keeps out of training, perhaps none; None where no client does."""
    model: nn.Module | None = None
    """The network of ``features``, in evaluation mode."""

    def __len__(self) -> int:
        """Return N."""
        return len(self.shard)

    @property
    def counts(self) -> torch.Tensor:
        """Class counts, int64 [C]."""
        return torch.from_numpy(self.shard.counts(self.num_classes, self.settings.task.class_counts))

    def of(self, shard: Shard) -> LocalData:
        """Return the same with other images."""
        return replace(self, shard=shard)

    def features(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield features float32 [B, D] of the network's backbone and targets [B, ...], on the CPU, in order.

        The features of an image have the same bits in any client, at any place, and where they were computed
        before in place of the images.

        Raises:
            ConfigError: The network has no backbone and head, or its features are not [B, D].
        """
        backbone = halves(self.model or nn.Identity(), "a statistic of features").backbone
        if self.shard.images.dtype != np.uint8 and not floating(backbone):  # they are the features
            for x, targets in self.batches():
                yield backbone(x).cpu(), targets.cpu()
            return
        extract, labels = FeatureExtractor(backbone, self.settings), self.shard.labels
        shard = self.shard
        found = extract.each(lambda some: shard.batch(some)[0], np.arange(len(self)), shard.beside)
        for positions, features in found:
            yield features, torch.from_numpy(np.asarray(labels[self.shard.indices[positions]]))

    def batches(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Yield images [B, channels, H, W], normalised only, and targets [B, ...], on the device.

        Images come with further inputs where the network reads such.
        """
        for start in range(0, len(self.shard), self.batch_size):
            positions = np.arange(start, min(start + self.batch_size, len(self.shard)))
            yield self.settings.batch(self.shard, positions)


@torch.no_grad()
def compute_statistic(spec: PluginSpec, model: nn.Module, data: LocalData) -> dict[str, torch.Tensor]:
    """Return the named sums of a statistic over a client's images, the model in evaluation mode.

    Raises:
        PluginError: It is unknown, or returned something else than named tensors.
    """
    model.eval()
    tensors = spec.tensors if isinstance(spec, Query) else {}
    data = replace(data, model=model)
    with data.settings.one_model():
        found = registry.build("statistic", spec, model=model, data=data, tensors=tensors)
    if not isinstance(found, Mapping) or not all(isinstance(one, torch.Tensor) for one in found.values()):
        raise PluginError(f"[statistic] use = {spec.use!r}: it returned no tensors by name")
    return dict(found)


def class_counts(*, data: LocalData) -> dict[str, torch.Tensor]:
    """Training images of each class: ``count`` [C]."""
    return {"count": data.counts}
