"""The server: a Flower ServerApp that runs the rounds of an experiment with any strategy.

Flower's own ``Strategy.start`` has no first round, no callback and no checkpoint; this loop has them and asks
the strategy for the same four things, so that stock strategies run unchanged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedvision import metrics, seeding
from fedvision.config import ExperimentConfig
from fedvision.errors import RoundLost, RunError
from fedvision.flower import codec
from fedvision.flower.checks import ask_roster, check_state, check_strategy, hopeless
from fedvision.flower.exchange import Exchange
from fedvision.flower.roster import Roster
from fedvision.flower.strategy import FlowerStrategy
from fedvision.training.evaluate import Evaluation
from fedvision.training.loop import learning_rate
from fedvision.types import MetricFn, State

ATTEMPTS = 3
"""Times that a round is played whose sums are lost with the worker that held them."""
FAILED_ROUNDS = 3
"""Rounds in a row in which nobody succeeds before the run is given up."""


class Journal(Protocol):
    """Who is told what happens: the run folder, the progress bar, a notebook."""

    def begin(self, roster: Roster) -> None:
        """The federation is there."""

    def client_done(self, round: int, done: int, total: int) -> None:
        """One more client of the round has answered."""

    def round_done(self, record: Mapping[str, Any], seconds: Mapping[str, float], state: State) -> None:
        """A round is over: its facts, its times and the global state after it."""


@dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """What the server needs to run an experiment's rounds."""

    config: ExperimentConfig
    """The experiment."""
    strategy: Strategy
    """Selects, instructs and combines."""
    state: State
    """The travelling tensors to begin with; taken out of here, or they were held for the whole run."""
    journal: Journal
    """Who is told."""
    first_round: int = 1
    """Where to begin; above 1 when a run is resumed."""
    roster: Roster | None = None
    """The federation's members, where they are known beforehand; None asks every node."""
    measure: Callable[[Grid, Roster, State], Evaluation] | None = None
    """Measures a state on the server's own test images; None where it has none."""
    extra_metrics: Mapping[str, MetricFn] = field(default_factory=dict)
    """Further numbers by name, from confusion counts."""


def build(plan: ServerPlan) -> ServerApp:
    """Return the ServerApp of an experiment."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        _Server(grid, plan).run()

    return app


class _Server:
    """The rounds of one run."""

    def __init__(self, grid: Grid, plan: ServerPlan) -> None:
        self.grid, self.plan, self.config = grid, plan, plan.config
        self.strategy, self.state = plan.strategy, dict(plan.state)
        plan.state.clear()
        self.roster: Roster = plan.roster or ask_roster(grid)
        check_strategy(plan.strategy, len(self.roster))
        if isinstance(plan.strategy, FlowerStrategy):
            plan.strategy.introduce(self.roster)

    def run(self) -> None:
        """Run all rounds from the plan's first.

        Raises:
            RunError: Nobody succeeded for ``FAILED_ROUNDS`` rounds in a row, or in all of them.
        """
        self.plan.journal.begin(self.roster)
        failed = 0
        last = min(FAILED_ROUNDS, self.config.rounds)
        for number in range(self.plan.first_round, self.config.rounds + 1):
            record, seconds = self._round(number)
            failed = 0 if record["clients"] else failed + 1
            if failed >= last:
                raise RunError(hopeless(failed, record["refused"]))
            self.plan.journal.round_done(record, seconds, self.state)

    def _round(self, number: int) -> tuple[dict[str, Any], dict[str, float]]:
        start = time.perf_counter()
        record = self._train_again(number)
        trained = time.perf_counter()
        measured = number % self.config.evaluation.every == 0 or number == self.config.rounds
        record["server"] = self._measure_here() if measured else None
        served = time.perf_counter()
        record["local"] = self._measure_there(number, record) if measured else None
        end = time.perf_counter()
        seconds = {
            "train": trained - start,
            "server": served - trained,
            "local": end - served,
            "total": end - start,
        }
        return record, seconds

    def _train_again(self, number: int) -> dict[str, Any]:
        """Run the training phase, and once more from the same state where what it gathered was lost."""
        for _ in range(ATTEMPTS - 1):
            with suppress(RoundLost):
                return self._train(number)
        return self._train(number)

    def _train(self, number: int) -> dict[str, Any]:
        """Run one training phase, replace the state where somebody succeeded, and return the facts."""
        arrays = codec.encode_state(self.state)
        with seeding.stock_globals(self.config.seed, "select", number):
            messages = list(self.strategy.configure_train(number, arrays, self._train_config(), self.grid))
        exchange = Exchange(roster=self.roster, stage="training", expected=self.state)
        told: dict[int, tuple[float, int]] = {}
        replies = self._watch(number, exchange, messages, told)
        with seeding.stock_globals(self.config.seed, "combine", number):
            combined, _ = self.strategy.aggregate_train(number, replies)
        if combined is not None and exchange.answered:
            self.state = check_state(number, codec.decode_state(combined), self.state)
        losses = {client: told[client] for client in exchange.answered}
        examples = sum(count for _, count in losses.values())
        return {
            "round": number,
            "clients": exchange.answered,
            "examples": examples,
            "lr": learning_rate(self.config.training, number, self.config.rounds),
            "train_loss": sum(loss * n for loss, n in losses.values()) / examples if examples else None,
            "client_loss": {str(client): loss for client, (loss, _) in losses.items()},
            "refused": exchange.refused,
            "bytes": {"down": exchange.down, "up": exchange.up},
        }

    def _watch(
        self, number: int, exchange: Exchange, messages: list[Message], told: dict[int, tuple[float, int]]
    ) -> Iterator[Message]:
        """Yield usable replies, noting each client's loss and images and telling the journal."""
        ordered = not (isinstance(self.strategy, FlowerStrategy) and self.strategy.any_order)
        for done, reply in enumerate(exchange.send(self.grid, messages, ordered=ordered), 1):
            client = self.roster.client(reply.metadata.src_node_id)
            told[client] = codec.training_facts(reply.content)
            self.plan.journal.client_done(number, done + len(exchange.refused), len(messages))
            yield reply
            # Let go before the next one is made, or two models are in memory.
            del reply

    def _train_config(self) -> ConfigRecord:
        shared = self.config.loss.prior == "global"
        return codec.encode_counts(self.roster.counts) if shared else ConfigRecord()

    def _measure_here(self) -> dict[str, Any] | None:
        if self.plan.measure is None:
            return None
        return self._facts([self.plan.measure(self.grid, self.roster, self.state)])

    def _measure_there(self, number: int, record: dict[str, Any]) -> dict[str, Any] | None:
        """Measure on the images that clients keep for it; confusion counts are summed, then divided."""
        if not self.config.evaluation.holdout:
            return None
        arrays = codec.encode_state(self.state)
        with seeding.stock_globals(self.config.seed, "select-evaluate", number):
            messages = list(self.strategy.configure_evaluate(number, arrays, ConfigRecord(), self.grid))
        exchange = Exchange(roster=self.roster, stage="evaluation")
        replies = list(exchange.send(self.grid, messages, ordered=True))
        self.strategy.aggregate_evaluate(number, replies)
        record["refused"] += exchange.refused
        record["bytes"]["down"] += exchange.down
        record["bytes"]["up"] += exchange.up
        if not replies:
            return None
        by_client = {
            client: codec.decode_evaluation(reply.content)
            for client, reply in zip(exchange.answered, replies, strict=True)
        }
        confusions = {client: evaluation.confusion for client, evaluation in by_client.items()}
        return {
            **self._facts(list(by_client.values())),
            "spread": metrics.client_spread(confusions),
            "accuracy": {str(c): metrics.accuracy(m) for c, m in confusions.items() if m.sum()},
        }

    def _facts(self, evaluations: list[Evaluation]) -> dict[str, Any]:
        confusion = np.sum([evaluation.confusion for evaluation in evaluations], axis=0)
        loss = sum(evaluation.loss_sum for evaluation in evaluations)
        return {
            "loss": loss / max(1, int(confusion.sum())),
            "confusion": confusion.tolist(),
            "scores": metrics.scores(confusion, np.array(self.roster.counts), self.plan.extra_metrics),
        }
