"""Any ``RoundStrategy`` as a Flower ``Strategy``, and either kind by name.

Strategies work on torch states and know nothing of Flower; this adapter makes the messages, so the same
object runs in ``fedvision simulate``, in a deployment and in a ServerApp that somebody else wrote.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedvision import registry, seeding
from fedvision.errors import PluginError
from fedvision.flower import codec
from fedvision.strategies.base import RoundStrategy
from fedvision.types import Instruction, PluginSpec, State, Update


class FlowerStrategy(Strategy):
    """Turns select, instruct and combine into Flower's configure and aggregate.

    Args:
        inner: The strategy.
        seed: The experiment's root seed, for the selection of clients.
    """

    def __init__(self, inner: RoundStrategy, *, seed: int) -> None:
        self.inner, self._seed = inner, seed
        self._clients: Mapping[int, int] = {}
        self._cohort: dict[int, tuple[int, int]] = {}
        self._state: State = {}

    def introduce(self, clients: Mapping[int, int]) -> None:
        """Learn which node hosts which client: ``{node: client}``; without it nodes count as clients."""
        self._clients = clients

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Select the round's cohort and yield one training message for each member."""
        nodes = {self._clients.get(node, node): node for node in grid.get_node_ids()}
        rng = seeding.numpy_stream(self._seed, "select", server_round)
        cohort = self.inner.select(server_round, sorted(nodes), rng)
        self._cohort = {nodes[client]: (client, position) for position, client in enumerate(cohort)}
        self._state = codec.decode_state(arrays)
        config[codec.ROUND] = server_round
        return self._instructions(server_round, arrays, config)

    def _instructions(self, round: int, arrays: ArrayRecord, config: ConfigRecord) -> Iterator[Message]:
        for node, (client, _) in self._cohort.items():
            instruction = self.inner.instruct(round, self._state, client)
            content = codec.encode_instruction(instruction, arrays, config)
            yield Message(content, node, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies as they come; None where nobody succeeded."""
        seen = _Totals()
        updates = seen.watch(self._updates(replies))
        first = next(updates, None)
        if first is None:
            return None, None
        state = self.inner.combine(self._state, itertools.chain([first], updates))
        return codec.encode_state(state), MetricRecord({codec.TRAIN_LOSS: seen.loss / max(1, seen.examples)})

    def _updates(self, replies: Iterable[Message]) -> Iterator[Update]:
        for reply in replies:
            if not reply.has_error():
                client, position = self._cohort[reply.metadata.src_node_id]
                yield codec.decode_update(reply.content, client, position)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Yield one evaluation message for every client."""
        config[codec.ROUND] = server_round
        content = codec.encode_instruction(Instruction(), arrays, config)
        return (Message(content, node, MessageType.EVALUATE) for node in grid.get_node_ids())

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean loss over all images; counts are summed by whoever reads the replies."""
        evaluations = [codec.decode_evaluation(reply.content) for reply in replies if not reply.has_error()]
        examples = sum(evaluation.examples for evaluation in evaluations)
        if not examples:
            return None
        return MetricRecord({"loss": sum(evaluation.loss_sum for evaluation in evaluations) / examples})

    def summary(self) -> None:
        """Say nothing: the run folder holds the configuration."""


class _Totals:
    """Sums the training loss of updates that pass through, without holding them."""

    def __init__(self) -> None:
        self.loss, self.examples = 0.0, 0

    def watch(self, updates: Iterable[Update]) -> Iterator[Update]:
        for update in updates:
            self.loss += update.loss * update.examples
            self.examples += update.examples
            yield update


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
