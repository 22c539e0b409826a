"""A carrier whose clients take as long as a test sets, by a clock that only moves when somebody waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp.strategy import Strategy

from fedvision.algorithms.fedavg import FedAvg
from fedvision.config import ExperimentConfig
from fedvision.flower import codec, internals
from fedvision.flower.strategy import FlowerStrategy
from fedvision.server import server_app
from fedvision.server.round_state import RoundState
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.training.evaluate import Evaluation
from fedvision.training.loop import TrainResult
from fedvision.types import State
from fedvision.updates.chain import UpdateChain
from tests.flower.test_strategy import Members, Nodes

Answer = Callable[[int, int, State], "State | Error"]
"""(client, round, model) -> the model that it sends back, or how it fails."""


def plus_one(client: int, round: int, state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


def eight(client: int, round: int, state: State) -> State:
    """Client 2 adds 8, the others add 1."""
    return {"w": state["w"] + (8.0 if client == 2 else 1.0)}


class SlowGrid(Nodes):
    """Node 100 + k is client k; ``seconds[(client, round)]`` is how long its training takes, 1 s else."""

    simulated = False

    def __init__(
        self,
        clients: int = 3,
        seconds: Mapping[tuple[int, int], float] | None = None,
        answer: Answer = plus_one,
    ) -> None:
        self.clients = {100 + client: client for client in range(clients)}
        self.seconds, self.answer = dict(seconds or {}), answer
        self.time = 0.0
        self.due: list[tuple[float, int, Message]] = []
        self.requested: list[tuple[int, int]] = []
        """(round, client) of every training."""
        self.silent_since: dict[tuple[int, int], int | None] = {}
        """By round and client: since when none of its replies was used, as sent to it."""
        self.twice: set[int] = set()
        """Clients whose replies come twice."""

    def get_node_ids(self) -> list[int]:
        return list(self.clients)

    def now(self) -> float:
        return self.time

    def post(self, messages: Sequence[Message]) -> None:
        self.resume(messages, [self.time] * len(messages), self.time)

    def resume(self, messages: Sequence[Message], since: Sequence[float], now: float) -> None:
        for message in messages:
            client, round = self.clients[message.metadata.dst_node_id], codec.round_of(message.content)
            took = 0.1
            if message.metadata.message_type == "train":
                self.requested.append((round, client))
                self.silent_since[round, client] = codec.decode_task(message, client).silent_since
                took = self.seconds.get((client, round), 1.0)
            for _ in range(1 + (client in self.twice)):
                self.due.append((self.time + took, client, message))
        self.due.sort(key=lambda item: item[:2])

    def watch(self, limit: Callable[[], float], kind: str = "") -> Iterator[tuple[Message, Message]]:
        while wanted := [item for item in self.due if not kind or item[2].metadata.message_type == kind]:
            if wanted[0][0] > limit():
                self.time = limit()
                return
            self.due.remove(wanted[0])
            self.time = max(self.time, wanted[0][0])
            yield wanted[0][2], self.reply(wanted[0][2])

    def ready(self) -> list[Message]:
        return [message for due, _, message in self.due if due <= self.time]

    def wait(self, until: float) -> None:
        self.time = min([due for due, _, _ in self.due if due > self.time] + [until])

    def reply(self, message: Message) -> Message:
        client = self.clients[message.metadata.dst_node_id]
        right = codec.round_of(message.content) * torch.eye(2, dtype=torch.int64)
        counted = Evaluation(stats=ConfusionCounts.from_matrix(right.numpy()), loss_sum=1.0)
        if message.metadata.message_type != "train":
            return Message(codec.encode_evaluation(counted), reply_to=message)
        state = codec.decode_state(message.content.array_records["arrays"])
        answer = self.answer(client, codec.round_of(message.content), state)
        if isinstance(answer, Error):
            return Message(answer, reply_to=message)
        merged = content(answer)
        if codec.decode_task(message, client).measure:
            codec.carry(merged, codec.encode_evaluation(counted))
        return Message(merged, reply_to=message)


def content(answer: State) -> RecordDict:
    """A tensor named ``control`` is that of SCAFFOLD's ``w``."""
    state = dict(answer)
    control = {"control": {"w": state.pop("control")}} if "control" in state else {}
    return codec.encode_update(TrainResult(state=state, examples=4, loss=0.5, steps=1, tensors=control))


class Diary:
    """A journal that keeps the records and the model after each round."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.states: list[State] = []

    def begin(self, client_registry: Any) -> None: ...

    def client_done(self, round: int, done: int, total: int) -> None:
        assert 0 < done <= total

    def enough(self, record: dict[str, Any]) -> bool:
        return False

    def given_up(self, record: Mapping[str, Any]) -> None:
        self.last = dict(record)

    def round_done(
        self,
        record: Mapping[str, Any],
        seconds: Mapping[str, float],
        state: State,
        reliability: Mapping[str, Any] | None = None,
    ) -> None:
        self.records.append(dict(record))
        self.states.append(state)

    def values(self) -> list[float]:
        """The only number of the model after each round."""
        return [round(float(state["w"]), 6) for state in self.states]


def play(
    grid: SlowGrid,
    rounds: int = 3,
    strategy: Strategy | None = None,
    *,
    memory: RoundState | None = None,
    first: int = 1,
    state: State | None = None,
    holdout: float = 0.0,
    with_training: bool = False,
    updates: UpdateChain | None = None,
    **table: Any,
) -> Diary:
    """Run rounds of a model of one number, which begins at 0."""
    internals.identify(1)
    config = ExperimentConfig.from_dict(
        {
            "rounds": rounds,
            "data": {"use": "digits"},
            "round": table,
            "evaluation": {"holdout": holdout, "with_training": with_training},
        }
    )
    diary = Diary()
    client_registry = Members(grid.clients)
    client_registry.counts = (1, 1)
    plan = server_app.ServerPlan(
        config=config,
        strategy=strategy or FlowerStrategy(FedAvg(), seed=0),
        state=state or {"w": torch.zeros(1)},
        journal=diary,
        client_registry=client_registry,
        first_round=first,
        rounds=memory or RoundState(config.round),
        updates=updates,
    )
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    try:
        server_app.build(plan)(grid=grid, context=context)
    except Exception as error:
        error.diary = diary  # type: ignore[attr-defined]
        raise
    return diary
