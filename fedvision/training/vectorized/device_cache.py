"""Image sets that live on the device as they are, so that batches are gathered where they are trained.

Fashion-MNIST takes 47 MB there; a set that would fill the device stays where it is, and the images of each
stack of clients are sent over instead.
"""

from __future__ import annotations

import numpy as np
import torch

from fedvision.data.shards import Shard

SHARE = 0.25
"""Share of the free memory of a GPU that image sets may take."""
_PIECE = 1 << 26
"""Bytes that are sent over at a time: a memory map is never read whole into the host's memory."""


class DeviceDatasetCache:
    """The image sets of one device.

    Args:
        device: Where they are to live.
        limit: Bytes that they may take; None allows ``SHARE`` of a GPU's free memory, and nothing on other
            devices, whose memory is the host's own.
    """

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        self._device, self._left = device, limit
        self._sets: dict[int, tuple[object, tuple[torch.Tensor, torch.Tensor] | None]] = {}

    def find(self, shard: Shard) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the whole base of a shard: images uint8 [N, H, W, channels] and targets [N, ...].

        They are sent over on first access and stay at their address. None where there is no
        room for them.
        """
        key = id(shard.images)
        if key not in self._sets:
            # The base is kept with its copy, so that no other one gets its number.
            self._sets[key] = (shard.images, self._take_in(shard))
        return self._sets[key][1]

    def _take_in(self, shard: Shard) -> tuple[torch.Tensor, torch.Tensor] | None:
        size = shard.images.nbytes + shard.labels.nbytes
        if self._left is None:
            cuda = self._device.type == "cuda"
            self._left = int(SHARE * torch.cuda.mem_get_info(self._device)[0]) if cuda else 0
        if size > self._left:
            return None
        self._left -= size
        kind = torch.from_numpy(np.array(shard.images[:0])).dtype
        images = torch.empty(shard.images.shape, dtype=kind, device=self._device)
        rows = max(1, _PIECE // max(1, shard.images[:1].nbytes))
        for start in range(0, len(images), rows):
            piece = np.array(shard.images[start : start + rows])
            images[start : start + rows].copy_(torch.from_numpy(piece))
        return images, torch.from_numpy(np.array(shard.labels)).to(self._device)
