"""Any ``RoundStrategy`` as a Flower ``Strategy``, and either kind by name.

Strategies work on torch states and know nothing of Flower; this adapter makes the messages, so the same
object runs in ``fedvision simulate``, in a deployment and in a ServerApp that somebody else wrote.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedvision import registry, seeding
from fedvision.errors import PluginError
from fedvision.flower import codec
from fedvision.flower.roster import Roster, Unasked
from fedvision.strategies.base import RoundStrategy
from fedvision.strategies.mean import Sums, summable
from fedvision.types import Instruction, PluginSpec, State, Update


class FlowerStrategy(Strategy):
    """Turns select, instruct and combine into Flower's configure and aggregate.

    Args:
        inner: The strategy.
        seed: The experiment's root seed, for the selection of clients.
    """

    def __init__(self, inner: RoundStrategy, *, seed: int) -> None:
        self.inner, self._seed = inner, seed
        self._mean = summable(inner)
        self._roster: Roster = Unasked()
        self._positions: dict[int, int] = {}
        self._next = 0
        self._state: State = {}

    @property
    def any_order(self) -> bool:
        """Whether replies may be combined as they come; else they must come in the messages' order."""
        return self._mean is not None

    def introduce(self, roster: Roster) -> None:
        """Learn which node hosts which client; without it nodes count as clients."""
        self._roster = roster

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Select the round's cohort and yield one training message for each member."""
        rng = seeding.numpy_stream(self._seed, "select", server_round)
        cohort = self.inner.select(server_round, self._roster.present(grid), rng)
        self._positions = {client: position for position, client in enumerate(cohort)}
        self._next = len(cohort)
        self._state = codec.decode_state(arrays)
        config[codec.ROUND] = server_round
        return self._instructions(server_round, arrays, config)

    def _instructions(self, round: int, arrays: ArrayRecord, config: ConfigRecord) -> Iterator[Message]:
        told, content = Instruction(), None
        for client in self._positions:
            instruction = self.inner.instruct(round, self._state, client)
            if content is None or not _alike(instruction, told):
                told, content = instruction, codec.encode_instruction(instruction, arrays, config)
            yield Message(content, self._roster.node(client), MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies as they come; None where nobody succeeded.

        Replies may be single updates or, from a carrier that folds, sums over several clients. A strategy
        whose ``any_order`` is false needs single updates in the messages' order.
        """
        losses = _Losses()
        usable = losses.watch(replies)
        state = self._sum(usable) if self._mean else self._combine(usable)
        if state is None:
            return None, None
        self._state = {}  # the last round's model must not stay until the next round begins
        return codec.encode_state(state), MetricRecord({codec.TRAIN_LOSS: losses.mean()})

    def _sum(self, replies: Iterator[Message]) -> State | None:
        """Add up whatever comes, in any order: updates, and sums that others took."""
        assert self._mean is not None
        sums = Sums(self._mean, self._state)
        for reply in replies:
            if codec.is_folded(reply.content):
                codec.decode_sums(reply.content, sums)
            else:
                sums.add(self._update(reply))
            # Let go before the next one is made, or two models are in memory.
            del reply
        return sums.conclude() if sums.heard else None

    def _combine(self, replies: Iterator[Message]) -> State | None:
        updates = map(self._update, replies)
        first = next(updates, None)
        return None if first is None else self.inner.combine(self._state, itertools.chain([first], updates))

    def _update(self, reply: Message) -> Update:
        client = self._roster.client(reply.metadata.src_node_id)
        # Late answers, of clients whom this round may have asked or not, come after the cohort.
        position = self._positions.pop(client, None)
        if position is None:
            position = self._next
            self._next += 1
        return codec.decode_update(reply.content, client, position)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Yield one evaluation message for every client."""
        config[codec.ROUND] = server_round
        content = codec.encode_instruction(Instruction(), arrays, config)
        return (Message(content, node, MessageType.EVALUATE) for node in grid.get_node_ids())

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean loss over all images; counts are summed by whoever reads the replies."""
        contents = [reply.content for reply in replies if not reply.has_error()]
        evaluations = [codec.decode_evaluation(content) for content in contents]
        examples = sum(map(codec.told_examples, contents))
        if not examples:
            return None
        return MetricRecord({"loss": sum(evaluation.loss_sum for evaluation in evaluations) / examples})

    def summary(self) -> None:
        """Say nothing: the run folder holds the configuration."""


def _alike(one: Instruction, other: Instruction) -> bool:
    """Say whether two instructions can share a content: the same words and the very same tensors."""
    same = one.tensors.keys() == other.tensors.keys() and all(
        state is other.tensors[group] for group, state in one.tensors.items()
    )
    return same and one.objective == other.objective and one.numbers == other.numbers


class _Losses:
    """Notes the training losses of replies that pass through, without holding these."""

    def __init__(self) -> None:
        self._noted: list[tuple[float, int]] = []

    def watch(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies that are no errors."""
        for reply in replies:
            if not reply.has_error():
                self._noted.append(codec.training_facts(reply.content))
                yield reply
            # Whoever is asked for the next reply must not hold the last one: it is a model.
            del reply

    def mean(self) -> float:
        """Return the mean over all images; ``fsum`` rounds once, so the order of the replies is no matter."""
        images = sum(examples for _, examples in self._noted)
        return math.fsum(loss * examples for loss, examples in self._noted) / max(1, images)


def build_strategy(spec: PluginSpec, *, seed: int) -> Strategy:
    """Build a strategy by name, ours or a Flower one; a wrapper's inner strategy is a table of its own.

    Raises:
        PluginError: The strategy is unknown, its arguments do not fit, or the result is no strategy.
    """
    args: dict[str, Any] = dict(spec.args)
    if isinstance(args.get("strategy"), Mapping):
        table = dict(args["strategy"])
        inner = PluginSpec(use=str(table.pop("use", "fedavg")), args=table)
        args["strategy"] = build_strategy(inner, seed=seed)
    built = registry.build("strategy", PluginSpec(use=spec.use, args=args))
    if isinstance(built, RoundStrategy):
        return FlowerStrategy(built, seed=seed)
    if isinstance(built, Strategy):
        return built
    raise PluginError(
        f"[strategy] use = {spec.use!r}: it made a {type(built).__name__}, which is neither a "
        "fedvision.strategies.base.RoundStrategy nor a flwr.serverapp.strategy.Strategy"
    )


def layers(strategy: Strategy) -> dict[str, object]:
    """Return the objects that hold a strategy's memory between rounds, by a name that is a checkpoint's."""
    if isinstance(strategy, FlowerStrategy):
        return {"strategy": strategy.inner}
    found: dict[str, object] = {"strategy": strategy}
    wrapped = getattr(strategy, "strategy", None)
    if isinstance(wrapped, Strategy):
        found |= {f"wrapped-{name}": layer for name, layer in layers(wrapped).items()}
    return found
