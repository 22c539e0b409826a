"""What happens between a round's training and its measurement: statistics, and the strategy's refinement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedvision import seeding
from fedvision.algorithms.base import ServerContext, cohort_size, draw
from fedvision.config import ExperimentConfig
from fedvision.errors import RunError
from fedvision.flower.available_clients import Excluding
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.statistic_codec import StatisticRequest
from fedvision.flower.strategy import FlowerStrategy
from fedvision.server.checks import check_state
from fedvision.server.statistics import StatisticResult, query_statistic
from fedvision.types import PluginSpec, State

RECORDED = 10_000
"""Numbers of a statistic up to which a run's record has its sums."""


@dataclass(frozen=True, kw_only=True)
class StatisticsPhase:
    """Queries the clients of one round for statistics."""

    grid: Grid
    """Carries the messages."""
    client_registry: ClientRegistry
    """The federation's members."""
    config: ExperimentConfig
    """The experiment."""
    excluded: frozenset[int]
    """Clients that are not queried."""
    make_model: Callable[[State], nn.Module] | None
    """Makes a network that holds a state."""

    def after_training(self, strategy: Strategy, round: int, state: State, record: dict[str, Any]) -> State:
        """Return the round's model as the strategy refines it; note in the record what clients reported.

        Args:
            strategy: Any strategy; stock ones refine nothing.
            round: Round number, from 1.
            state: The model after the round's training.
            record: The round's facts so far.

        Raises:
            RunError: The strategy raised, or returned something else than the model.
        """
        if isinstance(strategy, FlowerStrategy) and strategy.refines and record["changed"]:
            spec = strategy.query(round, self.config.rounds)
            found = None if spec is None else self._query(spec, round, state, record)
            server = self._context(round, found)
            with seeding.torch_global(
                self.config.seed, "refine-global", round
            ):  # dropout of a head in training
                refined = strategy.refine(state, server)
            state = check_state(round, refined, state)
        if round % self.config.evaluation.every == 0 or round == self.config.rounds:
            for use in self.config.evaluation.statistics:
                self._note(use, self._query(PluginSpec(use=use), round, state, record), record)
        return state

    def _context(self, round: int, found: StatisticResult | None) -> ServerContext:
        if self.make_model is None:
            raise RunError("the strategy works on the model, and this server has none")
        counts = self.client_registry.counts
        return ServerContext(
            round=round,
            rounds=self.config.rounds,
            statistic=found.sums if found is not None and found.clients else None,
            class_counts=counts if any(counts) else None,
            make_model=self.make_model,
            generator=seeding.torch_stream(self.config.seed, "refine", round),
        )

    def _query(self, spec: PluginSpec, round: int, state: State, record: dict[str, Any]) -> StatisticResult:
        """Query a statistic and note who is in its sums."""
        request = StatisticRequest(spec=spec, round=round, state=state)
        found = query_statistic(
            self.grid,
            self.client_registry,
            request,
            clients=self._clients(round),
            timeout=self.config.round.deadline or None,
        )
        record["refused"] += found.refused
        record["bytes"]["down"] += found.down
        record["bytes"]["up"] += found.up
        record.setdefault("statistics", {})[spec.use] = found.facts()
        return found

    def _clients(self, round: int) -> Sequence[int]:
        """Return who is queried: all that are available, or the share of them that measures a model."""
        there = Excluding(self.client_registry.present(self.grid), self.excluded)
        share = self.config.evaluation.fraction
        if share == 1 or not len(there):
            return there
        rng = seeding.numpy_stream(self.config.seed, "statistic-clients", round)
        return draw(there, cohort_size(len(there), share, 1), rng)

    @staticmethod
    def _note(use: str, found: StatisticResult, record: dict[str, Any]) -> None:
        """Note a statistic of the run's configuration with its numbers, where they are not too many."""
        if sum(array.size for array in found.sums.values()) <= RECORDED:
            record["statistics"][use]["sums"] = {name: array.tolist() for name, array in found.sums.items()}
