"""Clients that train alone: each goes on from its own model, and nothing is averaged.

The messages are those of a federated round, so every engine carries them: workers train several clients at a
time, and the vectorized engine stacks them. Clients take turns in groups, whose models are all that is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from flwr.app import ConfigRecord, Message, MessageType
from flwr.serverapp import Grid

from fedvision import memory
from fedvision.engines.client_host import SimulatedClientHosts
from fedvision.engines.partial_aggregation import PartialAggregator
from fedvision.flower import codec
from fedvision.flower.client_registry import ClientRegistry
from fedvision.models.state import size_in_bytes
from fedvision.runs.baseline_folder import BaselineFolder
from fedvision.server.phase_result import PhaseResult, Undecoded
from fedvision.server.update_validator import UpdateValidator
from fedvision.training.evaluate import Evaluation
from fedvision.types import ClientConfig, State

GROUP, GROUP_BYTES = 256, 1 << 30
"""Clients of a group, and bytes of their models, at most."""
_SEPARATOR = "/"
Measure: TypeAlias = "Callable[[Mapping[int, State]], Iterator[tuple[int, dict[str, Any]]]]"
"""Measures the final models of clients, and yields each client with what is noted of it."""


@dataclass(frozen=True, kw_only=True)
class LoneHosts(SimulatedClientHosts):
    """The recipe of hosts whose clients' updates are never summed."""

    def aggregator(self) -> PartialAggregator | None:
        """Return None: each client's model is its own."""
        return None


@dataclass(kw_only=True)
class LoneTraining:
    """Trains clients alone and notes what is measured of each, a group after the other."""

    grid: Grid
    """Carries the messages."""
    client_registry: ClientRegistry
    """The clients' nodes."""
    place: BaselineFolder
    """Where it is noted, and where a stopped baseline goes on."""
    rounds: Sequence[int]
    """The rounds in which each client trains, rising."""
    initial: State
    """The travelling tensors with which each begins."""
    checkpoint_every: int
    """Trainings between two checkpoints of a group."""
    check: Callable[[], None]
    """Raises an interrupt that may have got lost; called before anything is noted."""
    on_training: Callable[[int, int, int], None] = lambda done, total, place: None
    """Called before each training of a group: clients done, all of them, and which of its rounds, from 0."""

    def run(self, clients: Sequence[int], measure: Measure) -> None:
        """Train and measure the clients that are not noted yet."""
        group, done, states, losses = self._resumed()
        noted = self.place.clients()
        left = [client for client in clients if client not in noted and client not in group]
        size = self._size()
        while group or left:
            if not group:
                group, left = left[:size], left[size:]
                done, losses, states = 0, {}, dict.fromkeys(group, self.initial)
            show = partial(self.on_training, len(clients) - len(left) - len(group), len(clients))
            self._train(done, states, losses, show)
            self._note(states, losses, measure)
            group, states = [], {}

    def _train(
        self, done: int, states: dict[int, State], losses: dict[int, float], show: Callable[[int], None]
    ) -> None:
        """Train a group in the rounds that are left of it; who fails leaves the group."""
        for place in range(done, len(self.rounds)):
            show(place)
            replies, failed = train(self.grid, self.client_registry, states, self.rounds[place], self.initial)
            self.check()
            for client, why in failed.items():
                self.place.append({"client": client, "failed": why})
                del states[client]
            for client, (state, loss) in replies.items():
                states[client], losses[client] = state, loss
            if (place + 1) % self.checkpoint_every == 0 or place + 1 == len(self.rounds) or failed:
                self._save(place + 1, states, losses)

    def _note(self, states: Mapping[int, State], losses: Mapping[int, float], measure: Measure) -> None:
        lines = [
            {"client": client, "loss": losses[client], **found}
            for client, found in (measure(states) if states else ())
        ]
        self.check()
        for line in lines:
            self.place.append(line)
        self._save(0, {}, {})

    def _save(self, done: int, states: Mapping[int, State], losses: Mapping[int, float]) -> None:
        tensors = {
            f"{client}{_SEPARATOR}{name}": tensor
            for client, state in states.items()
            for name, tensor in state.items()
        }
        values = {"losses": {str(client): losses[client] for client in states}}
        self.place.checkpoints.save(done, {"clients": tensors} if tensors else {}, values)

    def _resumed(self) -> tuple[list[int], int, dict[int, State], dict[int, float]]:
        """Return the group that was at work, its trainings that are done, its models and losses."""
        checkpoint = self.place.checkpoints.load()
        if checkpoint is None:
            return [], 0, {}, {}
        losses = {int(client): float(loss) for client, loss in checkpoint.values["losses"].items()}
        tensors = checkpoint.tensors.get("clients", {})
        states = {
            client: {name: tensors[f"{client}{_SEPARATOR}{name}"] for name in self.initial}
            for client in losses
        }
        return list(losses), checkpoint.round, states, losses

    def _size(self) -> int:
        """Return how many clients' models are held at a time."""
        free = memory.available()
        most = GROUP_BYTES if free is None else min(GROUP_BYTES, free // 4)
        return min(GROUP, max(1, most // max(1, size_in_bytes(self.initial))))


def train(
    grid: Grid, client_registry: ClientRegistry, states: Mapping[int, State], round: int, model: State
) -> tuple[dict[int, tuple[State, float]], dict[int, str]]:
    """Train each client once, from its own model.

    Args:
        grid: Carries the messages.
        client_registry: The clients' nodes.
        states: The clients' models.
        round: Number of the round, from which learning rate and order of the images follow.
        model: Tensors of the names, shapes and types that replies must have.

    Returns:
        The new models and mean training losses by client, and why others failed.
    """
    exchange = PhaseResult(client_registry=client_registry, stage="training", decoder=UpdateValidator(model))
    messages = _messages(client_registry, states, round, MessageType.TRAIN)
    found = {}
    for reply in exchange.send(grid, messages):
        assert reply.state is not None
        # What an engine hands out may lie in memory that it uses again.
        own = {name: reply.state[name].clone() for name in model}
        found[reply.client] = own, reply.loss
    return found, {item["client"]: item["reason"] for item in exchange.refused}


def on_test_images(
    grid: Grid, client_registry: ClientRegistry, states: Mapping[int, State], images: int
) -> dict[int, Evaluation]:
    """Measure each client's model on all of the server's test images; who fails is left out."""
    messages = [
        Message(
            codec.encode_measure(codec.encode_state(state), range(images)),
            client_registry.node(client),
            codec.MEASURE,
        )
        for client, state in states.items()
    ]
    return _measured(grid, client_registry, messages)


def on_own_images(
    grid: Grid, client_registry: ClientRegistry, states: Mapping[int, State], round: int
) -> dict[int, Evaluation]:
    """Measure each client's model on the images that it holds out; who fails is left out."""
    messages = _messages(client_registry, states, round, MessageType.EVALUATE)
    return _measured(grid, client_registry, messages)


def _messages(
    client_registry: ClientRegistry, states: Mapping[int, State], round: int, kind: str
) -> list[Message]:
    """Return a message for each client with its model; those of one model share its tensors."""
    arrays = {id(state): codec.encode_state(state) for state in states.values()}
    config = ConfigRecord({codec.ROUND: round})
    return [
        Message(
            codec.encode_client_config(ClientConfig(), arrays[id(state)], config),
            client_registry.node(client),
            kind,
        )
        for client, state in states.items()
    ]


def _measured(
    grid: Grid, client_registry: ClientRegistry, messages: Sequence[Message]
) -> dict[int, Evaluation]:
    exchange = PhaseResult(client_registry=client_registry, stage="measurement", decoder=Undecoded())
    return {
        client_registry.client(reply.metadata.src_node_id): codec.decode_evaluation(reply.content)
        for reply in exchange.send(grid, messages)
    }
