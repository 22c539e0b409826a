"""Strategies that need nothing from a round but weighted means of what the clients send.

FedAvg, FedProx, the server optimisers and SCAFFOLD are of this kind. Each defines an update's contribution to
which mean, and what becomes of the means. The sums are exact (see ``summation``), so they may be taken
anywhere and in any order: as replies come in, or on the workers that trained the clients.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedvision.aggregation.summation import PartialSum, WeightedSum
from fedvision.algorithms.base import RoundStrategy
from fedvision.types import ClientUpdate, State

MODEL = "model"
"""The group of the models themselves."""


@dataclass(frozen=True, kw_only=True)
class WeightedTensors:
    """What one update adds to one group's mean."""

    state: State
    """Tensors to average."""
    weight: float
    """Their weight, finite and >= 0; of the order of 1 or more, such as a number of examples."""


class MeanStrategy(RoundStrategy):
    """A round strategy whose ``combine`` is a function of weighted means; only ``finalize`` is abstract."""

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Return what an update adds to which group: by default its model, weighted by its examples.

        This runs where the update was made, perhaps in another process on a strategy that was built anew from
        the experiment: it may depend on its arguments and the constructor's alone.

        Args:
            state: The global model of this round, not to be changed.
            update: One client's answer.
        """
        return {MODEL: WeightedTensors(state=update.state, weight=float(update.examples))}

    @abstractmethod
    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Make the next global model.

        Args:
            state: The global model of this round, not to be changed.
            means: Each group's weighted mean, by the names of ``contribute``.
            num_updates: Number of updates in the means.

        Returns:
            Tensors with the names, shapes and dtypes of ``state``.
        """

    def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
        """Sum what the updates contribute, one at a time, and conclude."""
        sums = Sums(self, state)
        for update in updates:
            sums.add(update)
            # Let go before the next one is made, or two models are in memory.
            del update
        return sums.finalize()


def summable(strategy: RoundStrategy) -> MeanStrategy | None:
    """Return a strategy if sums taken anywhere serve it; None where its ``combine`` is its own."""
    if isinstance(strategy, MeanStrategy) and type(strategy).combine is MeanStrategy.combine:
        return strategy
    return None


class Sums:
    """The sums of one round of a strategy, or of a worker's part of it.

    Args:
        strategy: Defines what an update contributes.
        state: The round's global model, as the clients got it.
    """

    def __init__(self, strategy: MeanStrategy, state: State) -> None:
        self.strategy, self.state = strategy, state
        self.num_updates = 0
        """Updates in the sums."""
        self._sums: dict[str, WeightedSum] = {}

    def add(self, update: ClientUpdate) -> None:
        """Add what one update contributes; it is read, not kept."""
        for group, summand in self.strategy.contribute(self.state, update).items():
            self._sum(group).add(summand.state, summand.weight)
        self.num_updates += 1

    def add_all(self, updates: Sequence[ClientUpdate], state: State) -> None:
        """Add what several updates contribute: the same bits as one by one, in fewer operations.

        Args:
            updates: At least one, on any device.
            state: The round's global model, on theirs.

        Raises:
            ValueError: Updates contribute to other groups than the first one.
            RuntimeError: The strategy cannot work on that device. Nothing was added in either case.
        """
        rows = [self.strategy.contribute(state, update) for update in updates]
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError("the updates of one sum must contribute to the same groups")
        parts = {}
        for group in rows[0]:
            own = [row[group] for row in rows]
            parts[group] = self._sum(group).partial([s.state for s in own], [s.weight for s in own])
        for group, part in parts.items():
            self._sum(group).merge_now(part)
        self.num_updates += len(updates)

    def merge(self, parts: Mapping[str, PartialSum], num_updates: int) -> None:
        """Add sums that another process took over ``num_updates`` updates."""
        for group, part in parts.items():
            self._sum(group).merge(part)
        self.num_updates += num_updates

    def parts(self) -> dict[str, PartialSum]:
        """Return the sums to be merged elsewhere; they are used up."""
        sums, self._sums = self._sums, {}
        return {group: total.part() for group, total in sums.items()}

    def finalize(self) -> State:
        """Return the next global model; the sums are used up."""
        means = {group: total.mean() for group, total in self._sums.items()}
        return self.strategy.finalize(self.state, means, self.num_updates)

    def _sum(self, group: str) -> WeightedSum:
        return self._sums.setdefault(group, WeightedSum(self.state))
