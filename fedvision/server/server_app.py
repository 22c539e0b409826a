"""The server: a Flower ServerApp that runs the rounds of an experiment with any strategy.

Flower's own ``Strategy.start`` has no first round, no callback and no checkpoint; this loop has, and calls
the strategy for the same four things, so that stock strategies run unchanged.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedvision import seeding
from fedvision.config import ExperimentConfig
from fedvision.errors import RoundAborted, RunError, TooFewUpdates
from fedvision.flower import codec
from fedvision.flower.available_clients import AvailableClients, AvailableNodes
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.guard import Stream, guarded
from fedvision.flower.private_strategies import counted_equally, zero_updates_unscaled
from fedvision.flower.strategy import FlowerStrategy
from fedvision.flower.train_reply import TrainReply, as_message
from fedvision.server import checks, refinement
from fedvision.server.phase_result import PhaseResult, Undecoded
from fedvision.server.reply_collector import QuorumMissed, ReplyCollector
from fedvision.server.round_observer import RoundObserver
from fedvision.server.round_state import RoundState
from fedvision.server.scores import Scores
from fedvision.server.summed_updates import sum_replies
from fedvision.server.training_reports import TrainingReports
from fedvision.server.update_validator import UpdateValidator
from fedvision.tasks.base import build_task
from fedvision.training.evaluate import Evaluation
from fedvision.training.loop import learning_rate
from fedvision.types import MetricFn, State
from fedvision.updates.chain import UpdateChain
from fedvision.updates.schema import UpdateSchema

ATTEMPTS = 3
"""Times that a round is played whose sums are lost with the worker that held them."""


@dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """What the server needs to run an experiment's rounds."""

    config: ExperimentConfig
    """The experiment."""
    strategy: Strategy
    """Selects, instructs and combines."""
    state: State
    """The travelling tensors to begin with; taken out of here, or they were held for the whole run."""
    journal: RoundObserver
    """The observer."""
    first_round: int = 1
    """Where to begin; above 1 when a run is resumed."""
    client_registry: ClientRegistry
    """The federation's members."""
    measure: Callable[[Grid, ClientRegistry, State], Evaluation] | None = None
    """Measures a state on the server's own test images; None where it has none."""
    asks_trust: bool = False
    """Whether clients are asked how far the last model's probabilities can be trusted."""
    extra_metrics: Mapping[str, MetricFn] = field(default_factory=dict)
    """Further numbers by name, from what was counted."""
    make_model: Callable[[State], nn.Module] | None = None
    """Makes a network that holds a state, for strategies that work on the model; None where there is none."""
    rounds: RoundState | None = None
    """What is remembered from round to round; None begins anew."""
    updates: UpdateChain | None = None
    """Decodes what clients send; None where they send models as they are."""


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
        plain = UpdateChain(UpdateSchema.of(self.state))
        self.updates = plain if plan.updates is None else plan.updates
        self.client_registry = plan.client_registry
        checks.check_strategy(plan.strategy, len(self.client_registry))
        self.eligible = AvailableClients(self.client_registry)
        if isinstance(plan.strategy, FlowerStrategy):
            plan.strategy.introduce(self.eligible)
        self.rounds = plan.rounds or RoundState(self.config.round, self.config.seed)
        if isinstance(plan.strategy, FlowerStrategy):
            plan.strategy.silent_since = self.rounds.silent_since
            plan.strategy.clients_keep = self.updates.keeps_residual
        self.post = self.rounds.open(grid, self.client_registry)
        self.scores = Scores(build_task(plan.config.task), self.client_registry, plan.extra_metrics)

    def run(self) -> None:
        """Run all rounds from the plan's first.

        Raises:
            RunError: ``round.failed_rounds`` rounds in a row failed, or all of them.
        """
        self.plan.journal.begin(self.client_registry)
        failed = 0
        last = min(self.config.round.failed_rounds, self.config.rounds)
        for number in range(self.plan.first_round, self.config.rounds + 1):
            record, seconds = self._round(number)
            failed = 0 if record["changed"] else failed + 1
            if failed >= last:
                self.plan.journal.given_up(record)
                raise RunError(checks.no_progress_error(failed, record["refused"]))
            over = self.plan.journal.enough(record) or number == self.config.rounds
            found = self._judged(number, record) if over else None
            self.plan.journal.round_done(record, seconds, self.state, found)
            if over:
                break

    def _judged(self, number: int, record: dict[str, Any]) -> dict[str, Any] | None:
        """Give the last model its temperature; return how far it is to be trusted, if clients must say so."""
        phase = self._statistics()
        phase.calibrate(number, self.state, record)
        return phase.reliability(number, self.state, record) if self.plan.asks_trust else None

    def _round(self, number: int) -> tuple[dict[str, Any], dict[str, float]]:
        start = time.perf_counter()
        trains = getattr(self.strategy, "trains", True)
        record = self._train_again(number) if trains else self._without_training(number)
        while checks.all_declined(record):  # nobody may work now; the next attempt waits for one that may
            record = self._train_again(number)
        self.state = self._statistics().after_training(self.strategy, number, self.state, record)
        trained = time.perf_counter()
        measured = number % self.config.evaluation.every == 0 or number == self.config.rounds
        record["server"] = self._measure_here() if measured else None
        served = time.perf_counter()
        # Who trains in the next round is to measure this model then; after the last nobody trains.
        rides = self.config.evaluation.with_training and number < self.config.rounds
        record["local"] = self._measure_there(number, record) if measured and not rides else None
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
            with suppress(RoundAborted):
                return self._train(number)
        return self._train(number)

    def _train(self, number: int) -> dict[str, Any]:
        """Run one training phase, replace the state where somebody succeeded, and return the facts."""
        excluded = self._begin(number)
        pre_aggregates = bool(getattr(self.grid, "pre_aggregates", False))
        bound = self.rounds.bound(self.state)
        groups = checks.reply_groups(self.strategy, self.updates)
        validator = UpdateValidator(
            self.state, bound, self.updates, groups=groups, accepts_sums=pre_aggregates
        )
        messages = self._messages(number, bound if pre_aggregates else math.inf)
        exchange = PhaseResult(client_registry=self.client_registry, stage="training", decoder=validator)
        collection = ReplyCollector(self.rounds, exchange, number, self.state)
        reports = TrainingReports()
        replies = self._watch(number, collection, messages, reports)
        if self.updates.sum_only:
            replies = sum_replies(replies, validator, len(messages))
        combined = self._combine(number, collection, replies)
        if combined is not None and collection.used:
            self.state = checks.check_state(number, combined, self.state)
        late, self.rounds.lost = self.rounds.lost + collection.late, []
        new = [(client, *reports.facts[client]) for client in exchange.answered]
        facts = new + [(item["client"], item["loss"], item["examples"]) for item in late if item["used"]]
        changed = combined is not None and bool(facts)
        requested = [self.client_registry.client(message.metadata.dst_node_id) for message in messages]
        self.rounds.record_replies(number, requested, [client for client, _, _ in facts] if changed else [])
        examples = sum(count for _, _, count in facts)
        received = self._received(number, exchange, reports)
        return {
            "round": number,
            "clients": [client for client, _, _ in facts],
            "examples": examples,
            "changed": changed,
            "lr": learning_rate(self.config.training, number, self.config.rounds),
            "train_loss": sum(loss * n for _, loss, n in facts) / examples if examples else None,
            # Of a client that replied to this round and, late, to another one: that of this round.
            "client_loss": {str(client): loss for client, loss, _ in facts[len(new) :] + new},
            "refused": exchange.refused,
            "late": late,
            "busy": sorted(excluded - self.rounds.quarantined),
            "set_aside": self.rounds.note(exchange),
            "bytes": exchange.bytes(),
            **self._time(),
            **received,
        }

    def _begin(self, number: int) -> frozenset[int]:
        """Return the clients that cannot work in a round, once enough others can."""
        self.eligible.excluded = self.rounds.begin(
            number,
            self.grid,
            self.client_registry,
            checks.min_available(self.strategy, self.config.round, len(self.client_registry)),
            in_step=self.updates.keeps_residual or getattr(self.strategy, "in_step", False),
        )
        return self.eligible.excluded

    def _without_training(self, number: int) -> dict[str, Any]:
        """Return the facts of a round before the queries of which its model is made."""
        busy = sorted(self._begin(number) - self.rounds.quarantined)
        late, self.rounds.lost = self.rounds.lost, []
        return {**refinement.untrained_record(number), "busy": busy, "late": late, **self._time()}

    def _statistics(self) -> refinement.StatisticsPhase:
        """Return what queries clients between training and measurement, and lets the strategy refine."""
        return refinement.StatisticsPhase(
            grid=self.grid,
            client_registry=self.client_registry,
            config=self.config,
            excluded=self.rounds.quarantined | self._busy(),
            make_model=self.plan.make_model,
        )

    def _busy(self) -> frozenset[int]:
        """Return the clients that are still at work on machines of their own."""
        lasting = self.post.lasting
        return frozenset() if lasting is None or lasting.simulated else frozenset(self.post.busy())

    def _received(
        self, number: int, exchange: PhaseResult[TrainReply], reports: TrainingReports
    ) -> dict[str, Any]:
        """Return what the clients whose answers are used measured of the model that they were sent."""
        if not self._measures_first(number):
            return {}
        found = {c: reports.measured.get(c) for c in sorted(exchange.answered)}
        personal, of_personal = self._personal(found)
        good, bad = self.scores.usable(found)
        exchange.refused += bad + of_personal
        local = self.scores.local(good)
        return {"received": {"round": number - 1, **local, **personal} if local else None}

    def _personal(
        self, found: Mapping[int, RecordDict | None]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what clients measured of their personal models, where the method has such, and refusals.

        Args:
            found: Measurements by client; those of personal models are taken out of them.
        """
        own = {c: content and codec.unload(content, codec.PERSONAL) for c, content in found.items()}
        if not getattr(self.strategy, "personal_model", False):
            return {}, []
        # Who sent no measurement at all is refused for that.
        good, bad = self.scores.usable({c: own[c] for c, content in found.items() if content is not None})
        return {"personal": self.scores.local(good)}, bad

    def _measures_first(self, number: int) -> bool:
        """Return whether a round's training messages request to measure the model after the last one."""
        evaluation = self.config.evaluation
        return evaluation.with_training and number > 1 and (number - 1) % evaluation.every == 0

    def _time(self) -> dict[str, float]:
        """Return the seconds since the run began where they are simulated."""
        lasting = self.post.lasting
        return {"clock": lasting.now()} if lasting and lasting.simulated else {}

    def _messages(self, number: int, bound: float) -> list[Message]:
        """Return the training messages of the selected clients."""
        config = self._train_config(number)
        if bound < math.inf:
            config[codec.NORM_BOUND] = bound
        eligible: Grid = self.grid  # our strategies use the registry
        if not isinstance(self.strategy, FlowerStrategy):
            eligible = AvailableNodes(self.grid, self.client_registry, self.eligible.excluded)
        if not checks.has_enough(self.strategy, eligible):
            return []
        arrays = codec.encode_state(self.state)
        where = self._where("configure_train", number)
        with seeding.global_streams(self.config.seed, "select", number), guarded(where):
            messages = list(self.strategy.configure_train(number, arrays, config, eligible))
        checks.check_messages(where, messages, self.grid, self.client_registry)
        return self.rounds.limit_concurrency(messages, number)

    def _combine(
        self, number: int, collection: ReplyCollector[TrainReply], replies: Iterator[TrainReply]
    ) -> State | None:
        """Return what the strategy makes of the replies, None where there are too few."""
        stream, where = Stream(replies), self._where("aggregate_train", number)
        secret = None if self.config.privacy.noise == "reproducible" else seeding.SecretGlobals()
        # Clients that train in this process while their replies are fetched keep to the seed.
        read = secret.paused(stream) if secret else iter(stream)
        with seeding.global_streams(self.config.seed, "combine", number):
            try:
                with guarded(where, stream), secret or nullcontext(), zero_updates_unscaled(self.strategy):
                    result = self._aggregate(number, read)
                deque(replies, maxlen=0)  # those for which the strategy did not wait
                return result
            except QuorumMissed:
                return None
            except TooFewUpdates as error:
                with suppress(QuorumMissed):
                    deque(replies, maxlen=0)
                collection.annul(str(error))
                return None

    def _aggregate(self, number: int, replies: Iterator[TrainReply]) -> State | None:
        if isinstance(self.strategy, FlowerStrategy):
            return self.strategy.aggregate(number, replies)
        messages = counted_equally(self.strategy, map(as_message, replies))
        result = self.strategy.aggregate_train(number, messages)
        arrays = checks.check_result(self._where("aggregate_train", number), result)
        return None if arrays is None else codec.decode_state(arrays)

    def _where(self, method: str, number: int) -> str:
        return f"round {number}: {method} of the strategy {type(self.strategy).__name__}"

    def _watch(
        self,
        number: int,
        collection: ReplyCollector[TrainReply],
        messages: list[Message],
        reports: TrainingReports,
    ) -> Iterator[TrainReply]:
        """Yield usable replies, noting what each client reports beside its model, also in the journal."""
        ordered = not (isinstance(self.strategy, FlowerStrategy) and self.strategy.any_order)
        for reply in collection.receive(messages, ordered=ordered):
            reports.note(reply)
            self.plan.journal.client_done(number, collection.done, max(collection.done, len(messages)))
            yield reply
            # Let go before the next one is made, or two models are in memory.
            del reply

    def _train_config(self, number: int) -> ConfigRecord:
        shared = self.config.loss.needs_federation
        config = codec.encode_counts(self.client_registry.counts) if shared else ConfigRecord()
        if self._measures_first(number):
            config[codec.MEASURE_FIRST] = True
        silent_since = self.rounds.silent_since if self.updates.keeps_residual else {}
        if silent_since and not isinstance(self.strategy, FlowerStrategy):
            # Strategies of ours send it to the selected clients.
            config[codec.SILENT_SINCE] = [number for pair in silent_since.items() for number in pair]
        return config

    def _measure_here(self) -> dict[str, Any] | None:
        if self.plan.measure is None:
            return None
        return self.scores.total([self.plan.measure(self.grid, self.client_registry, self.state)])

    def _measure_there(self, number: int, record: dict[str, Any]) -> dict[str, Any] | None:
        """Measure on the images that clients keep for it; counts are summed, then divided."""
        if not self.config.evaluation.holdout:
            return None
        arrays = codec.encode_state(self.state)
        excluded = self.rounds.quarantined | self._busy()
        eligible = AvailableNodes(self.grid, self.client_registry, excluded)
        if not checks.has_enough(self.strategy, eligible):
            return None
        where = self._where("configure_evaluate", number)
        with seeding.global_streams(self.config.seed, "select-evaluate", number), guarded(where):
            messages = list(self.strategy.configure_evaluate(number, arrays, ConfigRecord(), eligible))
        checks.check_messages(where, messages, self.grid, self.client_registry)
        exchange = PhaseResult(client_registry=self.client_registry, stage="evaluation", decoder=Undecoded())
        collection = ReplyCollector(self.rounds, exchange, number, self.state)
        replies = list(collection.receive(messages, ordered=True))
        contents = dict(zip(exchange.answered, (reply.content for reply in replies), strict=True))
        personal, of_personal = self._personal(contents)
        good, bad = self.scores.usable(contents)
        if not isinstance(self.strategy, FlowerStrategy):  # ours makes nothing of them
            with guarded(self._where("aggregate_evaluate", number)):
                used = [reply for reply in replies if self._client(reply) in good]
                self.strategy.aggregate_evaluate(number, used)
        record["refused"] += exchange.refused + bad + of_personal
        record.update(personal)
        record["late"] += collection.late
        record["bytes"]["down"] += exchange.down
        record["bytes"]["up"] += exchange.up
        return self.scores.local(good)

    def _client(self, reply: Message) -> int:
        return self.client_registry.client(reply.metadata.src_node_id)
