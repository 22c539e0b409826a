"""Large arrays that stay in the worker that made them and come to the driver in slices.

A sum of models is twice a model, and there is one for each worker. In slices the driver never holds more of
them than some megabytes, however many workers there are. A slice comes in pieces that are small enough for
Ray to send in its answer: what goes through the object store is freed there a second later at best, so that
soon all of it would lie there, and in the driver's memory, as well.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from fedvision.errors import RoundAborted

PIECE_BYTES = 96_000
"""Ray sends results below 100 KiB in its answer, 10 MiB of them at most."""
PIECES = 80
"""Pieces that are fetched at once."""


@dataclass(frozen=True)
class ArrayLayout:
    """An array that stays where it is: float64 [layers, ...]."""

    dtype: str
    shape: tuple[int, ...]
    place: int
    """Which of the sums that the worker keeps it belongs to."""


class RemoteArray:
    """An array that comes in slices, the next one on its way while one is read.

    Args:
        layout: What it is like.
        fetch: Requests elements from start to stop of each layer, cut every so many; returns references.
    """

    def __init__(self, layout: ArrayLayout, fetch: Callable[[int, int, int], list[Any]]) -> None:
        self.layout, self._fetch = layout, fetch
        self._elements = math.prod(layout.shape[1:])
        self._piece = PIECE_BYTES // 8 // layout.shape[0]
        self._slice = PIECES * self._piece
        self._at, self._here = -1, torch.empty(0)
        self._coming: tuple[int, list[Any]] | None = None

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Return elements start to stop of each layer, rising from call to call.

        Raises:
            RoundAborted: The process that held them is gone.
        """
        number, last = start // self._slice, (stop - 1) // self._slice
        if number != last:
            middle = last * self._slice
            return torch.cat([self.part(start, middle), self.part(middle, stop)], dim=1)
        if number != self._at:
            self._read(number)
        first = number * self._slice
        return self._here[:, start - first : stop - first]

    def _read(self, number: int) -> None:
        coming = self._coming[1] if self._coming and self._coming[0] == number else self._request(number)
        try:
            self._here, self._at = torch.from_numpy(np.concatenate(ray.get(coming), axis=1)), number
        except ray.exceptions.RayError as error:
            raise RoundAborted(f"a worker was lost while its sums were fetched: {error}") from error
        more = (number + 1) * self._slice < self._elements
        self._coming = (number + 1, self._request(number + 1)) if more else None

    def _request(self, number: int) -> list[Any]:
        stop = min((number + 1) * self._slice, self._elements)
        return self._fetch(number * self._slice, stop, self._piece)


def cut(array: NDArray[Any], start: int, stop: int, piece: int) -> list[NDArray[Any]]:
    """Return elements start to stop of each layer of an array [layers, ...], in pieces [layers, n]."""
    flat = array.reshape(len(array), -1)
    return [flat[:, at : min(at + piece, stop)] for at in range(start, stop, piece)]


def tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return an array of the object store as a tensor that shares its memory."""
    with warnings.catch_warnings():
        # Views of the object store are read-only; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
