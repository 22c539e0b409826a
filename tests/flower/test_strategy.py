"""Our strategies as Flower strategies: the same numbers as Flower's, in Flower's own ServerApp loop."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as StockFedAvg
from flwr.serverapp.strategy import FedMedian
from flwr.serverapp.strategy import FedProx as StockFedProx

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedprox import FedProx
from fedvision.errors import PluginError
from fedvision.flower import codec, internals
from fedvision.flower.strategy import FlowerStrategy, build_strategy, layers
from fedvision.training.loop import TrainResult
from fedvision.types import ClientConfig, ClientUpdate, PluginSpec, State

STATE: State = {"w": torch.zeros(3), "b": torch.zeros(1)}


class Nodes(Grid):
    """A grid of four nodes, numbered from 100 in an order that is not the clients'."""

    clients: Mapping[int, int] = {103: 0, 101: 1, 100: 2, 102: 3}

    def get_node_ids(self) -> list[int]:
        return [100, 101, 102, 103]

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Any: ...

    def push_messages(self, messages: Any) -> Any: ...

    def pull_messages(self, message_ids: Any) -> Any: ...

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any: ...


class Members:
    """A registry of the clients on nodes, each with an image of the only class."""

    groups: ClassVar[Mapping[str, Collection[int]]] = {}

    def __init__(self, clients: Mapping[int, int]) -> None:
        self.nodes = {client: node for node, client in clients.items()}
        self.clients, self.counts = clients, (len(clients),)

    def __len__(self) -> int:
        return len(self.clients)

    def client(self, node: int) -> int:
        return self.clients.get(node, node)

    def node(self, client: int) -> int:
        return self.nodes[client]

    def present(self, grid: Grid) -> list[int]:
        return sorted(self.clients[node] for node in grid.get_node_ids() if node in self.clients)


def answers(messages: list[Message], clients: Mapping[int, int]) -> Iterator[Message]:
    """Each client k answers with k + 1 everywhere, from 10 (k + 1) images."""
    for number, message in enumerate(messages):
        internals.set_message_id(message, str(number))
        value = clients[message.metadata.dst_node_id] + 1
        state = {name: torch.full_like(tensor, value) for name, tensor in STATE.items()}
        update = TrainResult(state=state, examples=10 * value, loss=float(value), steps=1)
        yield Message(codec.encode_update(update), reply_to=message)


def one_round(strategy: Any) -> tuple[State, float]:
    internals.identify(1)
    grid = Nodes()
    if isinstance(strategy, FlowerStrategy):
        strategy.introduce(Members(grid.clients))
    messages = list(strategy.configure_train(1, codec.encode_state(STATE), ConfigRecord(), grid))
    arrays, metrics = strategy.aggregate_train(1, answers(messages, grid.clients))
    return codec.decode_state(arrays), float(metrics["train_loss"])


def test_fedavg_is_flowers_fedavg() -> None:
    state, loss = one_round(FlowerStrategy(FedAvg(), seed=1))
    expected, expected_loss = one_round(StockFedAvg(fraction_evaluate=0.0))
    for name in STATE:
        torch.testing.assert_close(state[name], expected[name].float(), rtol=1e-6, atol=0)
    assert (float(state["b"]), loss) == (pytest.approx(3.0), pytest.approx(expected_loss))


def test_the_cohort_depends_on_clients_and_seed_not_on_node_numbers() -> None:
    def cohort(seed: int, renumbered: int, order: tuple[int, ...] = (102, 100, 103, 101)) -> list[int]:
        grid = Nodes()
        grid.clients = {node + renumbered: client for node, client in Nodes.clients.items()}
        grid.get_node_ids = lambda: [node + renumbered for node in order]  # type: ignore[method-assign]
        strategy = FlowerStrategy(FedAvg(fraction=0.5), seed=seed)
        strategy.introduce(Members(grid.clients))
        internals.identify(1)
        messages = strategy.configure_train(3, codec.encode_state(STATE), ConfigRecord(), grid)
        return [grid.clients[message.metadata.dst_node_id] for message in messages]

    assert len(cohort(1, 0)) == 2
    assert cohort(1, 0) == cohort(1, 5000)
    for seed in range(8):
        assert cohort(seed, 0) == cohort(seed, 0, order=(100, 101, 102, 103))
    assert len({tuple(cohort(seed, 0)) for seed in range(8)}) > 1


def test_nobodys_success_is_no_result() -> None:
    strategy = FlowerStrategy(FedAvg(), seed=1)
    strategy.configure_train(1, codec.encode_state(STATE), ConfigRecord(), Nodes())
    assert strategy.aggregate_train(1, iter([])) == (None, None)


def test_replies_are_consumed_one_at_a_time() -> None:
    held: list[int] = []

    class Streaming(FedAvg):
        def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
            for update in updates:
                held.append(update.client)
            return state

    strategy = FlowerStrategy(Streaming(), seed=1)
    strategy.introduce(Members(Nodes.clients))
    messages = list(strategy.configure_train(1, codec.encode_state(STATE), ConfigRecord(), Nodes()))

    def watched() -> Iterator[Message]:
        for done, reply in enumerate(answers(messages, Nodes.clients)):
            assert len(held) >= done - 1
            yield reply

    strategy.aggregate_train(1, watched())
    assert held == [0, 1, 2, 3]


def test_strategies_are_built_by_name_and_wrappers_around_them() -> None:
    assert isinstance(build_strategy(PluginSpec(use="fedavg"), seed=0), FlowerStrategy)
    stock = build_strategy(PluginSpec(use="flwr.serverapp.strategy:FedMedian"), seed=0)
    assert type(stock) is FedMedian
    args = {
        "noise_multiplier": 0.1,
        "clipping_norm": 1.0,
        "num_sampled_clients": 4,
        "strategy": {"use": "flwr.serverapp.strategy:FedProx"},
    }
    use = "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping"
    wrapper = build_strategy(PluginSpec(use=use, args=args), seed=0)
    assert list(layers(wrapper)) == ["strategy", "wrapped-strategy"]
    assert isinstance(layers(wrapper)["wrapped-strategy"], StockFedProx)


def test_what_is_no_strategy_is_refused() -> None:
    with pytest.raises(PluginError, match="it made a Counter, which is neither"):
        build_strategy(PluginSpec(use="collections:Counter"), seed=0)


def test_evaluation_selects_every_node() -> None:
    internals.identify(1)
    strategy = FlowerStrategy(FedAvg(fraction=0.25), seed=1)
    messages = list(strategy.configure_evaluate(4, ArrayRecord(), ConfigRecord(), Nodes()))
    assert [message.metadata.dst_node_id for message in messages] == [100, 101, 102, 103]


def test_evaluation_selects_a_share_drawn_each_round() -> None:
    internals.identify(1)

    def cohort_of(round: int, seed: int = 1) -> list[int]:
        strategy = FlowerStrategy(FedAvg(), seed=seed, measured=0.5)
        strategy.introduce(Members(Nodes.clients))
        messages = strategy.configure_evaluate(round, ArrayRecord(), ConfigRecord(), Nodes())
        return [message.metadata.dst_node_id for message in messages]

    drawn = [tuple(cohort_of(round)) for round in range(1, 20)]
    assert {len(set(nodes)) for nodes in drawn} == {2}
    assert {node for nodes in drawn for node in nodes} == {100, 101, 102, 103}
    assert drawn == [tuple(cohort_of(round)) for round in range(1, 20)]
    assert drawn != [tuple(cohort_of(round, seed=2)) for round in range(1, 20)]


def test_equal_client_configs_share_a_content() -> None:
    class Configuring(FedAvg):
        def configure(self, round: int, state: State, client: int) -> ClientConfig:
            return ClientConfig(numbers={"mu": float(client >= 2)}, lr_factor=1.0)

    internals.identify(1)
    for inner, contents in ((FedAvg(), 1), (Configuring(), 2)):
        strategy = FlowerStrategy(inner, seed=1)
        strategy.introduce(Members(Nodes.clients))
        messages = list(strategy.configure_train(1, codec.encode_state(STATE), ConfigRecord(), Nodes()))
        assert len({id(message.content) for message in messages}) == contents
        sent_numbers = [codec.decode_task(message, 0).client_config.numbers for message in messages]
        assert sent_numbers == (
            [{}] * 4 if contents == 1 else [{"mu": 0.0}, {"mu": 0.0}, {"mu": 1.0}, {"mu": 1.0}]
        )


def test_training_messages_name_the_client_half() -> None:
    strategy = FlowerStrategy(FedProx(mu=0.5), seed=1)
    strategy.introduce(Members(Nodes.clients))
    messages = strategy.configure_train(1, codec.encode_state(STATE), ConfigRecord(), Nodes())
    requests = [codec.decode_task(message, 0) for message in messages]
    assert {request.algorithm for request in requests} == {"fedprox"}
    assert all(request.client_config.numbers == {"mu": 0.5} for request in requests)


def test_without_a_client_half_no_name_is_sent() -> None:
    strategy = FlowerStrategy(FedAvg(), seed=1)
    strategy.introduce(Members(Nodes.clients))
    message = next(iter(strategy.configure_train(1, codec.encode_state(STATE), ConfigRecord(), Nodes())))
    assert codec.algorithm_name(message.content) is None
