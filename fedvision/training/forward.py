"""How a batch of images goes through a network: the same in training, in measurement and in later use."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision.data.shards import Shard
from fedvision.data.transforms import BatchTransform
from fedvision.devices import holds
from fedvision.inputs import Batch, Inputs
from fedvision.models.mkldnn_layout import may_block
from fedvision.tasks.base import Task

_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ForwardSettings:
    """Where and in which arithmetic a network computes its logits; equal settings give equal bits."""

    task: Task
    """What targets and outputs are."""
    transform: BatchTransform
    """Normalisation and size."""
    device: torch.device
    """Where the network is."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the forward pass."""
    channels_last: bool = True
    """Whether images and weights are laid out as [B, H, W, channels] in memory."""
    draws: bool = False
    """Whether the network is a plug-in that may draw from the global generators in evaluation."""

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network to the device and into the memory layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(device=self.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def batch(self, shard: Shard, positions: NDArray[np.int64]) -> tuple[Batch, torch.Tensor]:
        """Return some images of a shard and their targets, as the task makes tensors of them, on the device.

        Targets in float64 stay on the CPU where the device has none.

        Args:
            shard: The images.
            positions: int64 [B], each from 0 to len(shard) - 1.

        Returns:
            Normalised images, float32 [B, channels, H, W], with what the network reads beside them, and
            targets [B, ...].
        """
        images, targets = self.task.collate(*shard.batch(positions))
        if holds(self.device, targets):
            targets = targets.to(self.device, non_blocking=True)
        return self.inputs(images, shard.beside(positions)), targets

    def inputs(self, images: torch.Tensor, further: NDArray[np.float32] | None = None) -> Batch:
        """Return images as the network takes them.

        Args:
            images: uint8 [B, H, W, channels].
            further: float32 [B, W]: what the network reads beside them, None where it reads nothing.

        Returns:
            float32 [B, channels, H, W], with ``further`` where it is given.
        """
        pixels = self.pixels(images)
        if further is None:
            return pixels
        return Inputs(pixels, torch.from_numpy(further).to(self.device, non_blocking=True))

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Return images uint8 [B, H, W, channels] as the network takes them, float32 [B, channels, H, W]."""
        moved = images.to(self.device, non_blocking=True)
        return self.transform.inputs(moved, channels_last=self.channels_last)

    def one_model(self) -> AbstractContextManager[object]:
        """Return the block in which one model's forward pass runs: its precision, the layout it may use."""
        return may_block() if self.precision == "float32" else self.autocast()

    def autocast(self) -> AbstractContextManager[object]:
        """Return the block in which a forward pass runs in the settings' precision."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_PRECISIONS[self.precision])
