"""Any ``RoundStrategy`` as a Flower ``Strategy``, and either kind by name.

Strategies work on torch states and know nothing of Flower; this adapter makes the messages, so the same
object runs in ``fedvision simulate``, in a deployment and in a ServerApp that somebody else wrote.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedvision import registry, seeding
from fedvision.algorithms.base import Answer, RoundStrategy, ServerContext, cohort_size, draw
from fedvision.algorithms.mean import Sums, summable
from fedvision.errors import PluginError, RunError
from fedvision.flower import codec, partial_sum_codec
from fedvision.flower.client_registry import ClientRegistry, UnknownClients
from fedvision.flower.guard import Stream, guarded
from fedvision.flower.internals_message import addressed
from fedvision.flower.masked_codec import is_hidden
from fedvision.flower.private_strategies import check_privacy
from fedvision.flower.train_reply import TrainReply, decode_train_reply, mean_loss
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import ClientConfig, ClientUpdate, PluginSpec, Query, State


class FlowerStrategy(Strategy):
    """Turns select, instruct and combine into Flower's configure and aggregate.

    Args:
        inner: The strategy.
        seed: The experiment's root seed, for the selection of clients.
        measured: Share of the clients that measure a model, 0 < measured <= 1.
    """

    def __init__(self, inner: RoundStrategy, *, seed: int, measured: float = 1.0) -> None:
        self.inner, self._seed, self._measured = inner, seed, measured
        self._mean = summable(inner)
        self._roster: ClientRegistry = UnknownClients()
        self._positions: dict[int, int] = {}
        self._next = 0
        self._state: State = {}
        self._encoded: Mapping[str, ArrayRecord] | None = None
        self.silent_since: Mapping[int, int] = {}
        """By client the first round since which none of its answers was used; the server keeps it."""
        self.clients_keep = False
        """Whether clients keep a part of their updates, whatever they are instructed."""

    @property
    def any_order(self) -> bool:
        """Whether replies may be combined as they come; else they must come in the messages' order."""
        return self._mean is not None

    @property
    def _client(self) -> str | None:
        """Registered name of the client half; None where it adds nothing."""
        kind = self.inner.client
        return None if kind is ClientAlgorithm else registry.name_of("client_algorithm", kind)

    @property
    def personal_model(self) -> bool:
        """Whether each client has a personal model beside the global one, which is measured as well."""
        return self.inner.client.personal_model

    @property
    def in_step(self) -> bool:
        """Whether clients may keep something between rounds that rests on which answers were used."""
        return self._client is not None or self.clients_keep

    def introduce(self, client_registry: ClientRegistry) -> None:
        """Learn which node hosts which client; without it nodes count as clients."""
        self._roster = client_registry

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Select the round's cohort and yield one training message for each member."""
        cohort = self._select(server_round, self._roster.present(grid))
        self._positions = {client: position for position, client in enumerate(cohort)}
        self._next = len(cohort)
        self._state = codec.decode_state(arrays)
        config[codec.ROUND] = server_round
        lost = [(client, self.silent_since[client]) for client in cohort if client in self.silent_since]
        if self._client:
            config[codec.ALGORITHM] = self._client
        if lost and self.in_step:
            config[codec.SILENT_SINCE] = [number for pair in lost for number in pair]
        return self._instructions(server_round, arrays, config)

    def _select(self, round: int, present: Sequence[int]) -> list[int]:
        """Return the round's cohort.

        Raises:
            RunError: The strategy's ``select`` raised, or named a client twice or one that cannot work now.
        """
        rng = seeding.numpy_stream(self._seed, "select", round)
        with self._guarded("select", round):
            # NumPy's integers are numbers to everybody but Flower's messages; 2.7 is no client.
            cohort = [operator.index(client) for client in self.inner.select(round, present, rng)]
        # Most strategies choose few of very many; a sequence that knows its members is not unrolled.
        known = set(present) if isinstance(present, list) else present
        seen: set[int] = set()
        for client in cohort:
            if client in seen or client not in known:
                what = "twice" if client in seen else "which is none of the clients that can work now"
                raise RunError(
                    f"{self._where('select', round)} named client {client}{' ' if client in seen else ', '}"
                    f"{what}; it must choose each of the clients that it is given once at most"
                )
            seen.add(client)
        return cohort

    def _instructions(self, round: int, arrays: ArrayRecord, config: ConfigRecord) -> Iterator[Message]:
        previous, message = ClientConfig(), None
        constants = self._constants(round)
        for client in self._positions:
            node = self._roster.node(client)
            with self._guarded("configure", round):
                client_config = self.inner.configure(round, self._state, client)
            if not isinstance(client_config, ClientConfig):
                raise RunError(
                    f"{self._where('configure', round)} returned a {type(client_config).__name__}; it must "
                    "return a fedvision.types.ClientConfig"
                )
            if message is None or not _alike(client_config, previous):
                with self._guarded("configure", round):  # what it returned may be nothing that can be sent
                    content = codec.encode_client_config(client_config, arrays, config, constants)
                previous, message = client_config, Message(content, node, MessageType.TRAIN)
            else:
                message = addressed(message, node)
            yield message

    def _constants(self, round: int) -> Mapping[str, ArrayRecord]:
        """Return what stays the same in the run, encoded once."""
        if self._encoded is None:
            with self._guarded("constant_tensors", round):
                self._encoded = codec.encode_constants(self.inner.constant_tensors())
        return self._encoded

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine messages of a server that knows Flower's strategies alone; see ``aggregate``."""
        losses: list[tuple[float, int]] = []
        state = self.aggregate(server_round, self._decoded(replies, losses))
        if state is None:
            return None, None
        return codec.encode_state(state), MetricRecord({codec.TRAIN_LOSS: mean_loss(losses)})

    def _decoded(self, messages: Iterable[Message], losses: list[tuple[float, int]]) -> Iterator[TrainReply]:
        """Yield what the replies that are no errors say, and note their losses and images."""
        for message in itertools.filterfalse(Message.has_error, messages):
            client = self._roster.client(message.metadata.src_node_id)
            reply = decode_train_reply(message, client, in_sum=codec.is_folded(message.content))
            losses.append((reply.loss, reply.examples))
            yield reply
            del message, reply

    def aggregate(self, round: int, replies: Iterable[TrainReply]) -> State | None:
        """Combine the replies as they come; None where nobody succeeded.

        Args:
            round: Number of the round.
            replies: Single updates or, from a carrier that sums, sums over several clients. A strategy whose
                ``any_order`` is false needs single updates in the messages' order.

        Returns:
            The next global model in the types in which tensors travel.
        """
        stream = Stream(replies)
        try:
            state = self._sum(stream, round) if self._mean else self._combine(stream, round)
        finally:
            self._state = {}
        if state is None:
            return None
        with self._guarded("finalize" if self._mean else "combine", round):
            return codec.sent(state)

    def _sum(self, replies: Stream[TrainReply], round: int) -> State | None:
        """Add up whatever comes, in any order: updates, and sums that others took."""
        assert self._mean is not None
        sums = Sums(self._mean, self._state)
        for reply in replies:
            if reply.content is not None:
                partial_sum_codec.decode_sums(reply.content, sums)
            else:
                update = self._update(reply)
                with self._guarded("contribute", round):
                    sums.add(update)
                del update
            # Let go before the next one is made, or two models are in memory.
            del reply
        if not sums.num_updates:
            return None
        with self._guarded("finalize", round):
            state = sums.finalize()
        return self._checked(state, "finalize", round)

    def _combine(self, replies: Stream[TrainReply], round: int) -> State | None:
        updates = map(self._update, replies)
        first = next(updates, None)
        if first is None:
            return None
        with self._guarded("combine", round, replies):
            state = self.inner.combine(self._state, itertools.chain([first], updates))
        return self._checked(state, "combine", round)

    def _checked(self, state: State, method: str, round: int) -> State:
        if not isinstance(state, Mapping):
            raise RunError(
                f"{self._where(method, round)} returned a {type(state).__name__}; it must return the model's "
                "tensors by name"
            )
        for name, tensor in state.items():
            if not isinstance(tensor, torch.Tensor):
                raise RunError(
                    f"{self._where(method, round)} returned a {type(tensor).__name__} as {name!r}; it must "
                    "return the model's tensors by name"
                )
        return state

    def _where(self, method: str, round: int) -> str:
        return f"round {round}: {method} of the strategy {type(self.inner).__name__}"

    def _guarded(
        self, method: str, round: int, stream: Stream[Any] | None = None
    ) -> AbstractContextManager[None]:
        return guarded(self._where(method, round), stream)

    def _update(self, reply: TrainReply) -> ClientUpdate:
        # Late replies, of clients in this round's cohort or not, come after the cohort.
        position = self._positions.pop(reply.client, None)
        if position is None:
            position = self._next
            self._next += 1
        return reply.update(position)

    @property
    def trains(self) -> bool:
        """Whether a round has clients train."""
        return self.inner.trains

    def cohort(self, round: int, clients: Sequence[int]) -> list[int]:
        """Return the round's cohort of a strategy without training.

        Raises:
            RunError: The strategy's ``select`` raised, or named a client twice or one that cannot work now.
        """
        return self._select(round, clients)

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        """Return the next statistic to query after a round's training, if there is one.

        Raises:
            RunError: The strategy raised, or returned something else.
        """
        with self._guarded("query", round):
            found = self.inner.query(round, rounds, answers)
        if found is not None and not isinstance(found, Query):
            raise RunError(
                f"{self._where('query', round)} returned a {type(found).__name__}; it must return a "
                "fedvision.types.Query or None"
            )
        return found

    @property
    def refines(self) -> bool:
        """Whether the strategy works on the model after a round's training."""
        kind = type(self.inner)
        return kind.refine is not RoundStrategy.refine or kind.query is not RoundStrategy.query

    def refine(self, state: State, server: ServerContext) -> State:
        """Return the round's model as the strategy leaves it."""
        with self._guarded("refine", server.round):
            refined = self.inner.refine(state, server)
        return self._checked(refined, "refine", server.round)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Yield one evaluation message for every client, or for a share that the round's stream draws."""
        config[codec.ROUND] = server_round
        if self._client and self.personal_model:
            config[codec.ALGORITHM] = self._client
        nodes: Iterable[int] = grid.get_node_ids()
        if self._measured < 1:
            there = nodes if isinstance(nodes, range) else sorted(nodes, key=self._roster.client)
            rng = seeding.numpy_stream(self._seed, "measured-clients", server_round)
            nodes = draw(there, cohort_size(len(there), self._measured, 1), rng) if there else []
        content = codec.encode_client_config(ClientConfig(), arrays, config)
        return (Message(content, node, MessageType.EVALUATE) for node in nodes)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean loss of clients that report theirs; the reader of the replies sums the counts."""
        contents = [reply.content for reply in replies if not reply.has_error()]
        contents = [content for content in contents if not is_hidden(content)]
        examples = sum(map(codec.reported_examples, contents))
        if not examples:
            return None
        return MetricRecord({"loss": sum(map(codec.reported_loss, contents)) / examples})

    def summary(self) -> None:
        """Log nothing: the run folder holds the configuration."""


def _alike(one: ClientConfig, other: ClientConfig) -> bool:
    """Return whether two instructions can share a content: the same values and the very same tensors."""
    same = one.tensors.keys() == other.tensors.keys() and all(
        state is other.tensors[group] for group, state in one.tensors.items()
    )
    return same and all(
        getattr(one, name) == getattr(other, name) for name in ("numbers", "texts", "models", "lr_factor")
    )


def build_strategy(spec: PluginSpec, *, seed: int, measured: float = 1.0) -> Strategy:
    """Build a strategy by name, ours or a Flower one; a wrapper's inner strategy is a table of its own.

    Args:
        spec: The ``[strategy]`` table.
        seed: The experiment's root seed.
        measured: Share of the clients that measure a model; Flower's own strategies have an
            argument for it.

    Raises:
        PluginError: The strategy is unknown, its arguments do not fit, the result is no strategy, or its
            noise hides less than documented.
    """
    args: dict[str, Any] = dict(spec.args)
    if isinstance(args.get("strategy"), Mapping):
        table = dict(args["strategy"])
        inner = PluginSpec(use=str(table.pop("use", "fedavg")), args=table)
        args["strategy"] = wrapped = build_strategy(inner, seed=seed, measured=measured)
        if isinstance(wrapped, FlowerStrategy) and wrapped.refines:
            raise PluginError(
                f"[strategy] use = {spec.use!r} wraps {inner.use!r}, whose work on the server it would leave "
                "out; use one of them alone"
            )
    built = registry.build("strategy", PluginSpec(use=spec.use, args=args))
    if isinstance(built, RoundStrategy):
        return FlowerStrategy(built, seed=seed, measured=measured)
    if isinstance(built, Strategy):
        check_privacy(built)
        return built
    raise PluginError(
        f"[strategy] use = {spec.use!r}: it made a {type(built).__name__}, which is neither a "
        "fedvision.algorithms.base.RoundStrategy nor a flwr.serverapp.strategy.Strategy"
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
