"""What happens between a round's training and its measurement: statistics, and the strategy's refinement.

A round of a strategy without training has this alone: who answers the strategy's queries are its clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedvision import seeding
from fedvision.algorithms.base import Answer, ServerContext, cohort_size, draw
from fedvision.config import ExperimentConfig
from fedvision.errors import RunError
from fedvision.flower.available_clients import Excluding
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.query_codec import StatisticRequest
from fedvision.flower.strategy import FlowerStrategy
from fedvision.server.checks import check_state
from fedvision.server.statistics import StatisticResult, query_statistic
from fedvision.tasks.base import build_task
from fedvision.training import held_out_calibration, likelihoods
from fedvision.training.client_trainer import probability_scale
from fedvision.types import Query, State

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
        if isinstance(strategy, FlowerStrategy) and not strategy.trains:
            state = self._model_of_queries(strategy, round, state, record)
        elif isinstance(strategy, FlowerStrategy) and strategy.refines and record["changed"]:
            answers, last = self._ask(strategy, round, state, record, self._clients(round), least=1)
            if (
                last is not None and not last.clients
            ):  # the model stays as it was trained, which nothing else tells
                record["unanswered"] = next(reversed(record["statistics"]))
            state = self._refined(strategy, round, state, answers, record)
        if round % self.config.evaluation.every == 0 or round == self.config.rounds:
            for use in self.config.evaluation.statistics:
                found, name = self._query(Query(use=use), round, state, record, self._clients(round))
                self._note(name, found, record)
        return state

    def calibrate(self, round: int, state: State, record: dict[str, Any]) -> None:
        """Note the last model's temperature in the record of its round, if the experiment asks for it."""
        if not self.config.evaluation.calibrate:
            return
        scale = probability_scale(self.config, len(self.client_registry.counts))
        found, _ = self._query(likelihoods.query(scale), round, state, record, self._clients(round))
        record["calibration"] = likelihoods.best_factor(found.sums)

    def reliability(self, round: int, state: State, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return how far the last model's probabilities can be trusted on what clients keep out of training.

        It is no part of the round's record, in which it would be missing from that of a longer run.

        Args:
            round: The last round.
            state: The model after it.
            record: Its record, with the model's temperature where it has one.

        Returns:
            ``Calibration.to_record`` where anybody answered, and ``held_out``: the numbers of ``clients`` and
            ``images`` behind it, of clients ``asked`` and ``withheld``, the ``failed`` ones with the reason,
            and ``bytes``. None where there is no such thing: nobody keeps images, or they have not one class
            each.
        """
        classes = len(self.client_registry.counts)
        if not self.config.evaluation.holdout or not build_task(self.config.task).one_class:
            return None
        scale = probability_scale(self.config, classes)
        scale *= float((record.get("calibration") or {}).get("factor", 1.0))
        asked = self._clients(round)
        query = held_out_calibration.query(scale)
        request = StatisticRequest(query=query, round=round, state=state, optional=True)
        found = self._answers_to(request, asked)
        failed = [{"client": one["client"], "reason": one["reason"]} for one in found.refused]
        clients, told = 0, {}
        try:
            clients, counted = held_out_calibration.pooled(found.sums, classes)
            told = counted.to_record()
        except ValueError as error:
            failed += [{"client": client, "reason": str(error)} for client in found.clients]
        held_out = {
            "clients": clients,
            "images": int(found.sums["images"].sum()) if clients else 0,
            "asked": len(asked),
            "withheld": len(found.withheld),
            "failed": failed,
            "bytes": {"down": found.down, "up": found.up},
        }
        return {"held_out": held_out, **(told if clients else {})}

    def _model_of_queries(
        self, strategy: FlowerStrategy, round: int, state: State, record: dict[str, Any]
    ) -> State:
        """Return the model that a strategy without training makes, and note whose answers it rests on."""
        cohort = strategy.cohort(round, Excluding(self.client_registry.present(self.grid), self.excluded))
        if not cohort:
            return state
        least = self.config.round.min_clients
        answers, last = self._ask(strategy, round, state, record, cohort, least=least)
        if last is None or len(last.clients) < least:
            return state
        refined = self._refined(strategy, round, state, answers, record)
        if refined is not state:
            record |= {"clients": list(last.clients), "examples": last.examples, "changed": True}
        return refined

    def _ask(
        self,
        strategy: FlowerStrategy,
        round: int,
        state: State,
        record: dict[str, Any],
        clients: Sequence[int],
        *,
        least: int,
    ) -> tuple[list[Answer], StatisticResult | None]:
        """Return the answers to a strategy's queries and the last result, which may have too few clients."""
        answers: list[Answer] = []
        last: StatisticResult | None = None
        while (query := strategy.query(round, self.config.rounds, tuple(answers))) is not None:
            last, _ = self._query(query, round, state, record, clients)
            if len(last.clients) < least:
                break
            answers.append(last.sums)
            # A later query may rest on whose images are in the earlier answers.
            clients = last.clients
        return answers, last

    def _refined(
        self,
        strategy: FlowerStrategy,
        round: int,
        state: State,
        answers: Sequence[Answer],
        record: dict[str, Any],
    ) -> State:
        """Return the model as the strategy refines it; ``state`` itself where the strategy leaves it."""
        if self.make_model is None:
            raise RunError("the strategy works on the model, and this server has none")
        counts = self.client_registry.counts
        server = ServerContext(
            round=round,
            rounds=self.config.rounds,
            answers=tuple(answers),
            class_counts=counts if any(counts) else None,
            make_model=self.make_model,
            generator=seeding.torch_stream(self.config.seed, "refine", round),
        )
        with seeding.global_streams(self.config.seed, "refine-global", round):  # dropout, plug-ins
            refined = strategy.refine(state, server)
        if server.facts:
            record["strategy"] = server.facts
        return state if refined is state else check_state(round, refined, state)

    def _query(
        self, query: Query, round: int, state: State, record: dict[str, Any], clients: Sequence[int]
    ) -> tuple[StatisticResult, str]:
        """Query a statistic, note who is in its sums, and return them with the name of the note."""
        found = self._answers_to(StatisticRequest(query=query, round=round, state=state), clients)
        record["refused"] += found.refused
        record["bytes"]["down"] += found.down
        record["bytes"]["up"] += found.up
        noted = record.setdefault("statistics", {})
        name = _free_name(query.use, noted)
        noted[name] = found.facts()
        return found, name

    def _answers_to(self, request: StatisticRequest, clients: Sequence[int]) -> StatisticResult:
        """Return the sums of the clients that answer within the deadline."""
        return query_statistic(
            self.grid,
            self.client_registry,
            request,
            clients=clients,
            timeout=self.config.round.deadline or None,
        )

    def _clients(self, round: int) -> Sequence[int]:
        """Return who is queried: all that are available, or the share of them that measures a model."""
        there = Excluding(self.client_registry.present(self.grid), self.excluded)
        share = self.config.evaluation.fraction
        if share == 1 or not len(there):
            return there
        rng = seeding.numpy_stream(self.config.seed, "statistic-clients", round)
        return draw(there, cohort_size(len(there), share, 1), rng)

    @staticmethod
    def _note(name: str, found: StatisticResult, record: dict[str, Any]) -> None:
        """Note a statistic of the run's configuration with its numbers, where they are not too many."""
        if sum(array.size for array in found.sums.values()) <= RECORDED:
            record["statistics"][name]["sums"] = {key: array.tolist() for key, array in found.sums.items()}


def untrained_record(round: int) -> dict[str, Any]:
    """Return the facts of a round in which nobody trains, before its queries."""
    return {
        "round": round,
        "clients": [],
        "examples": 0,
        "changed": False,
        "lr": None,
        "train_loss": None,
        "client_loss": {},
        "refused": [],
        "late": [],
        "busy": [],
        "set_aside": [],
        "bytes": {"down": 0, "up": 0},
    }


def _free_name(use: str, noted: Mapping[str, Any]) -> str:
    """Return a statistic's name in a round's record: a second query of the same one is ``name (2)``."""
    name, number = use, 1
    while name in noted:
        number += 1
        name = f"{use} ({number})"
    return name
