"""A weighted sum of models whose bits depend on the models and weights alone, not on order or grouping.

Floating-point addition is not associative: whoever adds in another order, or sums a part elsewhere, gets
other bits. Here every product of weight and value is first rounded to a whole multiple of a common quantum,
one for each tensor, in float64. Sums of such multiples are exact as long as they stay below 2^53 quanta, and
exact sums are associative. So replies may be added as they come, a worker may sum whichever clients it
trained and hand over one partial sum, and the mean has the same bits as if one process had added all in turn.
The idea is the pre-rounding of Demmel and Nguyen 2013, "Fast Reproducible Floating-Point Summation", ARITH.

The quantum is 2^-28 of the largest magnitude in the round's global tensor, rounded up to a power of two (and
of 2^-8 at least, for tensors that begin at zero). A product is off by half a quantum at most, which for
weights of 1 or more is less than a sixteenth of float32's own rounding of the largest value. The sum is exact
while the weights times the magnitudes stay below 2^25 (33 million images at the global model's magnitudes).
Beyond that nothing breaks: the last bits then depend on the order again. float64 tensors are summed in two
such layers, to 2^-56.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from fedvision.errors import RunError
from fedvision.types import State

BITS = 28
"""Binary digits of a quantum below the largest magnitude of the global tensor."""
SMALLEST = 2.0**-8
"""Least magnitude that a quantum is taken from."""
_SLICE = 1 << 16
"""Elements at a time: float64 temporaries that stay in a core's cache and small beside any model."""
_SMALL = 1 << 14
"""Elements up to which tensors are summed together: a call costs more than their elements."""
_BLOCK = 1 << 22
"""Elements of several models at a time: 32 MB in float64."""
_SHIFT = 1.5 * 2.0**52
"""Adding and subtracting this many quanta rounds a float64 to whole quanta."""


class Distant(Protocol):
    """A total that lies in another process and comes in slices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[layers, *shape]."""

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Return elements ``start`` to ``stop`` of each layer, float64 [layers, stop - start]; only to read.

        Slices are requested in order.
        """


@dataclass(kw_only=True)
class PartialSum:
    """What was summed elsewhere: float64 sums by tensor, the weights in them, and the models' types."""

    totals: Mapping[str, torch.Tensor | Distant]
    """float64 [layers, *shape] by tensor; may be fetched on access only."""
    weights: tuple[float, ...]
    """The weight of every model in the sum."""
    dtypes: Mapping[str, torch.dtype]
    """The models' type by tensor."""


@dataclass
class WeightedSum:
    """The running weighted sum over a round's cohort.

    In memory are the float64 total and the model being added, however large the cohort is.
    """

    reference: State = field(default_factory=dict)
    """The round's global model, from which the quanta follow; a tensor that it lacks counts as of size 1."""
    _totals: dict[str, torch.Tensor] = field(default_factory=dict)
    _weights: list[float] = field(default_factory=list)
    _dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    _parts: list[PartialSum] = field(default_factory=list)
    _quanta: dict[str, float] = field(default_factory=dict)
    _small: _Together | None = None
    _large: list[str] = field(default_factory=list)

    def add(self, state: State, weight: float) -> None:
        """Add one model times its weight.

        Args:
            state: Floating-point tensors; they are read, not kept.
            weight: Finite and >= 0; rounded to float32. Weights far below 1 lose digits: count examples, not
                shares of them.

        Raises:
            ValueError: The weight or the tensors' names do not fit.
        """
        weight = _checked(weight)
        if state.keys() != self._dtypes.keys():
            self._learn({name: tensor.dtype for name, tensor in state.items()})
        self._weights.append(weight)
        if not self._totals:
            self._begin(state)
        if self._small is not None:
            self._small.add(state, weight)
        for name in self._large:
            _accumulate(self._totals[name], state[name], weight, self._quantum(name))

    def partial(self, states: Sequence[State], weights: Sequence[float]) -> PartialSum:
        """Return the sum of several models times their weights, to be taken in by ``merge_now``.

        The bits of both are those of adding the models one by one.

        Args:
            states: K models, at least one, on any device: there they are summed, and their sum comes here.
            weights: Finite and >= 0, one for each.

        Raises:
            ValueError: A weight or the tensors' names do not fit.
        """
        rounded = tuple(_checked(weight) for weight in weights)
        dtypes = {name: tensor.dtype for name, tensor in states[0].items()}
        for state in states[1:]:
            _check_names(dtypes, state)
        totals = {
            name: _sum_of([state[name] for state in states], rounded, self._quantum(name)).cpu()
            for name in dtypes
        }
        return PartialSum(totals=totals, weights=rounded, dtypes=dtypes)

    def merge_now(self, part: PartialSum) -> None:
        """Add a sum of ``partial`` now; where ``merge`` holds what it gets until the mean is taken.

        Raises:
            ValueError: Its tensors are not those of the models before.
        """
        self._learn(part.dtypes)
        sums = {name: total for name, total in part.totals.items() if isinstance(total, torch.Tensor)}
        if not self._totals:
            self._begin({name: sums[name][0].to(dtype) for name, dtype in part.dtypes.items()})
        for name, total in sums.items():
            self._totals[name].add_(total)
        self._weights += part.weights

    def merge(self, part: PartialSum) -> None:
        """Add a sum that was computed elsewhere; its tensors are fetched when the mean is taken.

        Raises:
            ValueError: Its tensors are not those of the models before.
        """
        self._learn(part.dtypes)
        self._parts.append(part)

    def part(self) -> PartialSum:
        """Return what was added so far, to be merged elsewhere, and end the sum."""
        part = PartialSum(totals=self._totals, weights=tuple(self._weights), dtypes=self._dtypes)
        self._totals, self._weights = {}, []
        return part

    def mean(self) -> State:
        """Return the sum over the weights in the dtypes of the models, and end the sum.

        Raises:
            RunError: Nothing was added, or all weights are 0.
        """
        weights = [*self._weights, *(weight for part in self._parts for weight in part.weights)]
        # fsum rounds once, whatever the order.
        weight = math.fsum(weights)
        if weight == 0:
            raise RunError("there is no mean of this round's updates: all their weights are 0")
        return {name: self._mean(name, weight, dtype) for name, dtype in self._dtypes.items()}

    def _mean(self, name: str, weight: float, dtype: torch.dtype) -> torch.Tensor:
        """Return one tensor's mean; slice by slice, so that no float64 copy of all parts is made."""
        totals = [part.totals[name] for part in self._parts]
        if name in self._totals:
            totals.append(self._totals.pop(name))
        mean = torch.empty(totals[0].shape[1:], dtype=dtype)
        flat, (first, *others) = mean.view(-1), map(_slicer, totals)
        for start in range(0, flat.numel(), _SLICE):
            stop = min(start + _SLICE, flat.numel())
            total = first(start, stop).clone()
            for other in others:
                total.add_(other(start, stop))
            flat[start:stop] = total.sum(0).div_(weight)
        return mean

    def _learn(self, dtypes: Mapping[str, torch.dtype]) -> None:
        if not self._dtypes:
            self._dtypes = dict(dtypes)
        _check_names(self._dtypes, dtypes)

    def _begin(self, state: State) -> None:
        """Make zeros for every tensor, those of small ones as views of one array."""
        small = {name: t for name, t in state.items() if t.numel() <= _SMALL and t.dtype is not torch.float64}
        self._large = [name for name in state if name not in small]
        self._small = _Together(small, [self._quantum(name) for name in small]) if small else None
        views = self._small.views(small) if self._small is not None else {}
        for name, tensor in state.items():
            layers = 2 if tensor.dtype is torch.float64 else 1
            made = views.get(name)
            self._totals[name] = (
                torch.zeros((layers, *tensor.shape), dtype=torch.float64) if made is None else made
            )

    def _quantum(self, name: str) -> float:
        if name not in self._quanta:
            self._quanta[name] = quantum(self.reference.get(name))
        return self._quanta[name]


class _Together:
    """The sum of many small tensors as one vector.

    Args:
        state: The tensors.
        quanta: The quantum of each.
    """

    def __init__(self, state: State, quanta: list[float]) -> None:
        sizes = torch.tensor([tensor.numel() for tensor in state.values()])
        self._sizes: list[int] = sizes.tolist()
        self._shift = torch.repeat_interleave(torch.tensor(quanta, dtype=torch.float64) * _SHIFT, sizes)
        self._total = torch.zeros(int(sizes.sum()), dtype=torch.float64)
        self._values = torch.empty_like(self._total)
        split = zip(state.items(), torch.split(self._values, self._sizes), strict=True)
        self._places = [(name, part.view(tensor.shape)) for (name, tensor), part in split]

    def views(self, state: State) -> State:
        """Return each tensor's sum [1, *shape]; they follow what is added later."""
        parts = zip(state.items(), torch.split(self._total, self._sizes), strict=True)
        return {name: part.view(1, *tensor.shape) for (name, tensor), part in parts}

    def add(self, state: State, weight: float) -> None:
        """Add weight times the tensors, in whole quanta."""
        for name, place in self._places:
            place.copy_(state[name])
        # The product is exact, so it is no matter whether it is rounded before it is added.
        torch.add(self._shift, self._values, alpha=weight, out=self._values)
        self._total.add_(self._values.sub_(self._shift))


def _slicer(total: torch.Tensor | Distant) -> Callable[[int, int], torch.Tensor]:
    if not isinstance(total, torch.Tensor):
        return total.part
    flat = total.reshape(len(total), -1)
    return lambda start, stop: flat[:, start:stop]


def quantum(reference: torch.Tensor | None) -> float:
    """Return the quantum of a tensor's sum: a power of two, by the largest magnitude in the global one."""
    if reference is None:
        largest = 1.0
    elif not reference.numel():
        largest = SMALLEST
    else:
        largest = max(SMALLEST, float(torch.linalg.vector_norm(reference.float(), torch.inf)))
    return 2.0 ** (math.ceil(math.log2(largest)) - BITS)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute in: float32, or the type itself where it is wider."""
    return torch.promote_types(dtype, torch.float32)


def _accumulate(total: torch.Tensor, values: torch.Tensor, weight: float, quantum: float) -> None:
    """Add weight times values [...] to the layers of total [layers, ...], in whole quanta."""
    layers, source = total.view(len(total), -1), values.reshape(-1)
    scratch = torch.empty(min(_SLICE, source.numel()), dtype=torch.float64)
    shift = torch.tensor(_SHIFT * quantum, dtype=torch.float64)
    for start in range(0, source.numel(), _SLICE):
        part = source[start : start + _SLICE]
        rest = scratch[: part.numel()].copy_(part)
        if len(layers) == 1:
            # The product is exact, so it is no matter whether it is rounded before it is added.
            rounded = torch.add(shift, rest, alpha=weight, out=rest).sub_(shift)
            layers[0, start : start + _SLICE].add_(rounded)
            continue
        rest.mul_(weight)
        step = shift.clone()
        for layer in layers:
            rounded = rest.add(step).sub_(step)
            layer[start : start + _SLICE].add_(rounded)
            rest.sub_(rounded)
            step *= 2.0**-BITS


def _sum_of(values: Sequence[torch.Tensor], weights: Sequence[float], quantum: float) -> torch.Tensor:
    """Return the sum of K tensors times their weights, in whole quanta: float64 [layers, *shape]."""
    first = values[0]
    layers = 2 if first.dtype is torch.float64 else 1
    total = torch.zeros((layers, first.numel()), dtype=torch.float64, device=first.device)
    scale = torch.tensor(weights, dtype=torch.float64).to(first.device)[:, None]
    flat = [tensor.reshape(-1) for tensor in values]
    width = max(1, _BLOCK // len(values))
    for start in range(0, first.numel(), width):
        rest = torch.stack([tensor[start : start + width] for tensor in flat]).to(torch.float64).mul_(scale)
        shift = _SHIFT * quantum
        for layer in total:
            rounded = rest.add(shift).sub_(shift)
            layer[start : start + width] = rounded.sum(0)
            if layers > 1:
                rest.sub_(rounded)
                shift *= 2.0**-BITS
    return total.view(layers, *first.shape)


def _checked(weight: float) -> float:
    """Return a weight rounded to float32.

    24 digits times 24 digits is exact in float64, whether or not the processor fuses the operations.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"a weight must be finite and >= 0, not {weight}")
    return float(np.float32(weight))


def _check_names(known: Collection[str], given: Collection[str]) -> None:
    if differing := ", ".join(sorted(set(given) ^ set(known))):
        raise ValueError(f"models of one sum must have the same tensors; these are not in both: {differing}")
