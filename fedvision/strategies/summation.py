"""A weighted sum of models whose bits do not depend on who computed which part of it.

Floating-point addition is not associative: a different grouping gives different bits. The grouping is
therefore fixed by the place of a client in the round's cohort. ``CHUNK`` neighbouring places are one chunk;
within a chunk the models are added in order, and the chunks' sums are added in order. A worker that holds a
whole chunk can sum it elsewhere (``ChunkSum``) and hand over one model instead of eight. A place that stays
empty (a client that failed) changes nothing about the others' grouping.

Each product and each sum is rounded once, in float32 or wider, which IEEE 754 defines to the bit on any
machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

import torch

from fedvision.errors import RunError
from fedvision.types import State, Update

CHUNK = 8
"""Places of the cohort that make one chunk. Part of what a run's bits depend on."""


class ChunkSum:
    """The weighted sum over one chunk of the cohort, wherever it is computed.

    Args:
        chunk: Number of the chunk: position // ``CHUNK``.
    """

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self.weight = 0.0
        self.total: State = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._last = -1

    def add(self, state: State, weight: float, position: int) -> None:
        """Add one model times its weight.

        Args:
            state: Floating-point tensors; they are read, not kept.
            weight: Finite and >= 0.
            position: Place in the cohort, in this chunk and after the places added before.

        Raises:
            ValueError: The weight, the position or the tensors' names do not fit.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"a weight must be finite and >= 0, not {weight}")
        if position // CHUNK != self.chunk or position <= self._last:
            raise ValueError(f"position {position} does not follow {self._last} in chunk {self.chunk}")
        self._last = position
        self.weight += weight
        if not self.dtypes:
            self.dtypes = {name: tensor.dtype for name, tensor in state.items()}
        _check_names(self.dtypes, state)
        for name, tensor in state.items():
            # A product of its own, then a sum: add(alpha=...) rounds once or twice, as the processor likes.
            product = tensor.to(wide(tensor.dtype)) * weight
            self.total[name] = self.total[name].add_(product) if name in self.total else product


class WeightedSum:
    """The running weighted sum over a round's cohort.

    In memory are the total, one chunk's sum and the model being added, however large the cohort is.
    """

    def __init__(self) -> None:
        self._done: ChunkSum | None = None
        self._open: ChunkSum | None = None

    def add(self, state: State, weight: float, position: int) -> None:
        """Add one model times its weight.

        Args:
            state: Floating-point tensors; they are read, not kept.
            weight: Finite and >= 0.
            position: Place in the cohort, after the places added before.

        Raises:
            ValueError: The weight, the position or the tensors' names do not fit.
        """
        chunk = position // CHUNK
        if self._open is None or self._open.chunk != chunk:
            self._close()
            self._check_follows(chunk)
            self._open = ChunkSum(chunk)
        self._open.add(state, weight, position)

    def merge(self, part: ChunkSum) -> None:
        """Add a chunk's sum that was computed elsewhere; the part is used up.

        Raises:
            ValueError: The chunk does not come after those that are already in the sum.
        """
        self._close()
        self._check_follows(part.chunk)
        self._open = part

    def mean(self) -> State:
        """Return the sum over the weights in the dtypes of the first model, and end the sum.

        Raises:
            RunError: Nothing was added, or all weights are 0.
        """
        self._close()
        done, self._done = self._done, None
        if done is None or done.weight == 0:
            raise RunError("there is no mean of this round's updates: all their weights are 0")
        return {name: tensor.div_(done.weight).to(done.dtypes[name]) for name, tensor in done.total.items()}

    def _close(self) -> None:
        """Add the open chunk's sum to the total."""
        part, self._open = self._open, None
        if part is None:
            return
        if self._done is None:
            self._done = part
            return
        self._done.chunk = part.chunk
        self._done.weight += part.weight
        _check_names(self._done.total, part.total)
        for name, tensor in part.total.items():
            self._done.total[name].add_(tensor)

    def _check_follows(self, chunk: int) -> None:
        if self._done is not None and chunk <= self._done.chunk:
            raise ValueError(f"chunk {chunk} does not follow chunk {self._done.chunk}: add them in order")


def weighted_mean(updates: Iterable[Update], weight: Callable[[Update], float]) -> State:
    """Return the weighted mean of the updates' models, holding one update at a time.

    Args:
        updates: At least one, their positions rising.
        weight: Weight of an update, finite and >= 0, such as its number of examples.

    Raises:
        RunError: All weights are 0.
    """
    total = WeightedSum()
    for update in updates:
        total.add(update.state, weight(update), update.position)
        # Let go before the next one is made, or two models are in memory.
        del update
    return total.mean()


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute in: float32, or the type itself where it is wider."""
    return torch.promote_types(dtype, torch.float32)


def _check_names(known: Collection[str], given: State) -> None:
    if differing := ", ".join(sorted(given.keys() ^ set(known))):
        raise ValueError(f"models of one sum must have the same tensors; these are not in both: {differing}")
