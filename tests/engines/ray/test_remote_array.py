"""Arrays that come in slices: every element once, in order, and a lost process is a lost round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray
import torch

from fedvision.engines.ray import remote_array
from fedvision.engines.ray.remote_array import ArrayLayout, RemoteArray, cut
from fedvision.errors import RoundAborted


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("elements", [1, 10, 12, 13, 100])
def test_every_element_is_read_once_for_any_slice(
    layers: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_array, "PIECE_BYTES", 8 * 2 * layers)  # two elements a piece
    monkeypatch.setattr(remote_array, "PIECES", 3)
    monkeypatch.setattr(ray, "get", lambda references: references)
    array = np.arange(layers * elements, dtype=np.float64).reshape(layers, elements)
    requested: list[tuple[int, int]] = []

    def fetch(start: int, stop: int, piece: int) -> list[Any]:
        requested.append((start, stop))
        return cut(array, start, stop, piece)

    found = RemoteArray(ArrayLayout("float64", array.shape, 0), fetch)
    for step in (5, 7):
        requested.clear()
        parts = [found.part(at, min(at + step, elements)) for at in range(0, elements, step)]
        assert torch.equal(torch.cat(parts, dim=1), torch.from_numpy(array))
        assert len(requested) <= -(-elements // 6)
        assert all(stop - start <= 6 for start, stop in requested)


def test_pieces_are_small_enough_for_rays_answers() -> None:
    array = np.zeros((2, 100_000))
    pieces = cut(array, 0, 100_000, remote_array.PIECE_BYTES // 8 // 2)
    assert max(piece.nbytes for piece in pieces) <= remote_array.PIECE_BYTES < 100 * 1024
    assert remote_array.PIECE_BYTES * remote_array.PIECES < 10 * 2**20


def test_a_process_that_is_gone_loses_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(references: Any) -> Any:
        raise ray.exceptions.RayActorError

    monkeypatch.setattr(ray, "get", gone)
    with pytest.raises(RoundAborted, match="a worker was lost"):
        RemoteArray(ArrayLayout("float64", (1, 5), 0), lambda start, stop, piece: []).part(0, 5)
