"""Image sets on the device: sent once, as they are, while there is room."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvision.data.shards import Shard
from fedvision.training.vectorized import device_cache as module
from fedvision.training.vectorized.device_cache import DeviceDatasetCache

CPU = torch.device("cpu")


def shard(images: int, seed: int = 0) -> Shard:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (images, 4, 4, 1), np.uint8)
    return Shard(images=pixels, labels=rng.integers(0, 3, images), indices=np.arange(2))


@pytest.mark.parametrize("piece", [1, 40, 1 << 26])
def test_a_set_is_sent_once_and_whole(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    device_cache, base = DeviceDatasetCache(CPU, 1 << 20), shard(7)
    found = device_cache.find(base)
    assert found is not None
    images, labels = found
    assert torch.equal(images, torch.from_numpy(base.images))
    assert torch.equal(labels, torch.from_numpy(base.labels))
    assert images.data_ptr() != base.images.ctypes.data
    again = device_cache.find(base.take(np.array([1])))
    assert again is not None
    assert again[0] is images


def test_sets_are_taken_in_while_there_is_room() -> None:
    # Ten images of 16 bytes with labels of 8 each.
    device_cache = DeviceDatasetCache(CPU, 2 * 240 - 1)
    first, second, small = shard(10), shard(10, 1), shard(9, 2)
    assert device_cache.find(first) is not None
    assert device_cache.find(second) is None
    assert device_cache.find(small) is not None
    assert device_cache.find(first) is not None


def test_the_hosts_own_memory_needs_no_copy() -> None:
    assert DeviceDatasetCache(CPU).find(shard(1)) is None
