"""The vectorized engine: the same replies as the serial one, and a bad client fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.mean import Sums
from fedvision.config import ExperimentConfig
from fedvision.engines.client_host import SimulatedClientHosts
from fedvision.engines.serial import SerialEngine
from fedvision.engines.vectorized import VectorizedEngine, VectorizedGrid
from fedvision.errors import PluginError
from fedvision.experiment import Experiment
from fedvision.flower import codec, partial_sum_codec
from fedvision.flower.client_registry import FIRST_NODE
from fedvision.flower.train_reply import decode_train_reply
from fedvision.models.state import get_state, shared_names
from fedvision.registry import build
from fedvision.training.client_trainer import ClientTrainer
from fedvision.training.vectorized.trainer import VectorizedTrainer
from fedvision.types import ClientConfig, PluginSpec, State, TrainRequest
from tests.double import doubled
from tests.engines.hosts import AppRecipe
from tests.engines.test_serial import counting_app, order
from tests.experiments import FEDPER, tiny
from tests.methods import TRAINING, tables

COHORT = [3, 0, 4, 1, 2]


def recipe_of(folder: Path, **tables: Any) -> SimulatedClientHosts:
    """Return the recipe of a strategy that must see every update, unless another one is given."""
    federation = Experiment.build(tiny(**{"strategy": {"use": "median"}, **tables}))
    return SimulatedClientHosts(
        config=federation.config,
        dataset=federation.dataset,
        split=federation.split,
        model=federation.model,
        memory=folder / "clients",
    )


def orders(
    host_factory: SimulatedClientHosts, state: State, algorithm: str = "", **client_config: Any
) -> list[Message]:
    config = ConfigRecord({codec.ROUND: 1} | ({codec.ALGORITHM: algorithm} if algorithm else {}))
    client_settings = ClientConfig(**client_config)
    return [
        Message(
            codec.encode_client_config(client_settings, codec.encode_state(state), config),
            FIRST_NODE + k,
            "train",
        )
        for k in COHORT
    ]


def beginning(host_factory: SimulatedClientHosts) -> State:
    return get_state(host_factory.model, shared_names(host_factory.model, host_factory.config.model.shared))


def states(replies: Sequence[Message]) -> dict[int, State]:
    return {
        reply.metadata.src_node_id - FIRST_NODE: codec.decode_state(reply.content.array_records["arrays"])
        for reply in replies
    }


TOGETHER: list[dict[str, Any]] = [
    {"use": "fedavg"},
    {"use": "scaffold"},
    {"use": "fedprox", "mu": 0.1},
    {"use": "fednova"},
    {"use": "feddyn"},
    {"use": "q-fedavg"},
]
ELSEWHERE = {
    "ccvr": "its head rests on what is drawn of moments: a test of its own",
    "distillation": "its teacher is a run: tests/algorithms/test_distillation.py",
    **dict.fromkeys(("fedbn", "fedgrab", "fedrela", "fedrod", "fedloge"), "not stacked: the test below"),
    "fedper": "its personal tensors are those of the cases here",
    "krum": "it chooses models, and of equal ones the last bit decides",
}
"""Strategies that are not compared here by their names, and why."""


@pytest.mark.parametrize(
    ("personal", "strategy"),
    [
        *(([], one) for one in [*TOGETHER, {"use": "fedavg-support"}]),
        *((["head.*"], one) for one in TOGETHER),  # fedavg-support averages the head
        *(
            pytest.param([], {"use": use}, marks=pytest.mark.slow)
            for use in TRAINING
            if use not in {*ELSEWHERE, "fedavg-support", *(one["use"] for one in TOGETHER)}
        ),
    ],
)
def test_a_whole_run_is_that_of_the_serial_engine(
    strategy: dict[str, Any], personal: list[str], tmp_path: Path
) -> None:
    own = {"strategy": {**strategy, "fraction": 0.8}, "loss": {"use": "weighted"}}
    own["model"] = {**FEDPER["model"], "personal": personal}
    config = tiny(training={"lr": 0.1, "momentum": 0.9, "batch_size": 16}, **own)
    compare(config, tmp_path)


@pytest.mark.parametrize("use", ["fedbn", "fedrod", "fedloge", "fedgrab", "fedrela"])
def test_methods_that_cannot_be_stacked_have_the_serial_engines_bits_and_a_notice(
    use: str, tmp_path: Path
) -> None:
    config = tiny(evaluation={"holdout": 0.2}, **tables(use, {"use": "cnn", "width": 4, "dense": 8}))
    plain, found = (
        simulate(config, engine=engine, out=tmp_path / engine) for engine in ("serial", "vectorized")
    )
    assert all(torch.equal(found.state[name], tensor) for name, tensor in plain.state.items())
    assert found.rounds == plain.rounds
    notices = found.folder.summary()["notices"]
    assert sum(one.startswith("clients are trained one by one: ") for one in notices) == 1


@pytest.mark.slow
def test_updates_are_transformed_as_by_the_serial_engine(tmp_path: Path) -> None:
    """Which elements are largest may rest on the last bit; with half of them sent, few are near the edge."""
    update = [{"use": "clip", "max_norm": 0.5}, {"use": "top-k", "fraction": 0.5}, "float16"]
    compare(tiny(training={"lr": 0.1, "batch_size": 16}, update=update), tmp_path)


@pytest.mark.slow
def test_a_head_that_the_server_trains_is_that_of_the_serial_engine(tmp_path: Path) -> None:
    """Last bits of the models differ, so those of the moments do, and of what is drawn from them."""
    compare(tiny(strategy={"use": "ccvr", "every": 2, "steps": 50}), tmp_path, tolerance=1e-4)


def compare(config: ExperimentConfig, folder: Path, tolerance: float = 1e-7) -> None:
    """Run both engines, in double precision where a tolerance below float32's asks for it."""
    config = doubled(config) if tolerance < 1e-6 else config
    runs = [simulate(config, engine=engine, out=folder / engine) for engine in ("serial", "vectorized")]
    for name, tensor in runs[0].state.items():
        torch.testing.assert_close(runs[1].state[name], tensor, rtol=tolerance, atol=tolerance)
    for mine, his in zip(runs[1].rounds, runs[0].rounds, strict=True):
        assert mine["train_loss"] == pytest.approx(his["train_loss"], rel=tolerance)
        assert (mine["clients"], mine["bytes"]) == (his["clients"], his["bytes"])


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of clients of each stack."""
    sizes: list[int] = []
    train = VectorizedTrainer.train

    def count(self: VectorizedTrainer, requests: Sequence[TrainRequest]) -> Any:
        sizes.append(len(requests))
        return train(self, requests)

    monkeypatch.setattr(VectorizedTrainer, "train", count)
    return sizes


def test_training_goes_in_stacks_of_k_the_longest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, sentences = watched(monkeypatch), list[str]()
    host_factory = recipe_of(tmp_path)
    start = beginning(host_factory)
    with VectorizedEngine(stack=2).open(host_factory, on_notice=sentences.append) as grid:
        replies = list(grid.send_and_receive(orders(host_factory, start)))
    assert sizes == [2, 2]
    clients = [reply.metadata.src_node_id - FIRST_NODE for reply in replies]
    assert clients == sorted(COHORT, key=lambda k: -host_factory.cost(k))
    assert sentences == []
    with SerialEngine().open(host_factory) as grid:
        wanted = states(list(grid.send_and_receive(orders(host_factory, start))))
    found = states(replies)
    for client, state in wanted.items():
        torch.testing.assert_close(found[client], state, rtol=1e-5, atol=1e-5)


def test_a_stack_trains_only_when_its_replies_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = watched(monkeypatch)
    host_factory = recipe_of(tmp_path)
    start = beginning(host_factory)
    with VectorizedEngine(stack=2).open(host_factory) as grid:
        replies = iter(grid.send_and_receive(orders(host_factory, start)))
        assert sizes == []
        next(replies)
        assert sizes == [2]


def test_a_bad_client_fails_alone_with_one_notice(tmp_path: Path) -> None:
    sentences: list[str] = []
    host_factory = recipe_of(tmp_path)
    start = beginning(host_factory)
    messages = orders(host_factory, start, "fedprox", numbers={"mu": 0.1})
    good = messages[1].content
    lame = RecordDict(
        {"arrays": good["arrays"], "config": ConfigRecord({codec.ROUND: 1, codec.ALGORITHM: "fedprox"})}
    )
    broken = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord()})
    messages[2] = Message(lame, messages[2].metadata.dst_node_id, "train")
    messages[4] = Message(broken, messages[4].metadata.dst_node_id, "train")
    with VectorizedEngine().open(host_factory, on_notice=sentences.append) as grid:
        for _ in range(2):
            replies = list(grid.send_and_receive(messages))
            errors = {r.metadata.src_node_id - FIRST_NODE: r.error.reason for r in replies if r.has_error()}
            assert set(errors) == {COHORT[2], COHORT[4]}
            assert "got no number 'mu'" in (errors[COHORT[2]] or "")
    assert len(sentences) == 1
    assert sentences[0].startswith(
        "4 clients are trained one by one, as they failed at once: client 4, training"
    )


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"model": {"use": "rnn", "hidden": 8}}, "torch's recurrent layers (backbone.features.recurrent)"),
        ({"transforms": {"mixup": 0.2}}, "mixup blends"),
    ],
)
def test_clients_that_cannot_be_stacked_train_one_by_one_with_one_notice(
    tables: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    sentences: list[str] = []
    host_factory = recipe_of(tmp_path, **tables)
    start = beginning(host_factory)
    with VectorizedEngine().open(host_factory, on_notice=sentences.append) as grid:
        found = [states(list(grid.send_and_receive(orders(host_factory, start)))) for _ in range(2)]
    with SerialEngine().open(host_factory) as grid:
        wanted = states(list(grid.send_and_receive(orders(host_factory, start))))
    for client, state in wanted.items():
        assert all(torch.equal(found[1][client][name], tensor) for name, tensor in state.items())
    assert len(sentences) == 1
    assert sentences[0].startswith(f"clients are trained one by one: {reason}")


def test_a_stack_is_answered_with_its_sum_where_the_strategy_needs_no_more(tmp_path: Path) -> None:
    host_factory = recipe_of(tmp_path, strategy={"use": "fedavg"})
    start = beginning(host_factory)
    with VectorizedEngine(stack=2).open(host_factory) as grid:
        assert isinstance(grid, VectorizedGrid)
        assert grid.pre_aggregates
        replies = list(grid.send_and_receive(orders(host_factory, start)))
    assert {reply.metadata.src_node_id - FIRST_NODE for reply in replies} == set(COHORT)
    assert [codec.is_folded(reply.content) for reply in replies] == [True] * 5
    sums, apart = Sums(FedAvg(), start), Sums(FedAvg(), start)
    for reply in replies:
        partial_sum_codec.decode_sums(reply.content, sums)
    assert sums.num_updates == 5
    with SerialEngine().open(host_factory) as grid:
        for reply in grid.send_and_receive(orders(host_factory, start)):
            apart.add(decode_train_reply(reply, 0).update(0))
    torch.testing.assert_close(sums.finalize(), apart.finalize(), rtol=1e-5, atol=1e-5)


def test_what_was_summed_before_an_error_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = VectorizedTrainer.train

    def stumble(self: VectorizedTrainer, requests: Sequence[TrainRequest]) -> Any:
        yield next(iter(train(self, requests[:3])))
        raise ValueError("a wire came loose")

    monkeypatch.setattr(VectorizedTrainer, "train", stumble)
    host_factory, sentences = recipe_of(tmp_path, strategy={"use": "fedavg"}), list[str]()
    start = beginning(host_factory)
    with VectorizedEngine().open(host_factory, on_notice=sentences.append) as grid:
        replies = list(grid.send_and_receive(orders(host_factory, start)))
    sums = Sums(FedAvg(), start)
    for reply in replies:
        partial_sum_codec.decode_sums(reply.content, sums)
    assert (len(replies), sums.num_updates) == (5, 5)
    assert sentences == ["5 clients are trained one by one, as they failed at once: a wire came loose"]


def test_steps_that_cannot_be_recorded_run_with_one_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(step: Any) -> Any:
        raise RuntimeError("this device records nothing")

    def of(trainer: ClientTrainer, *, record: bool = True) -> VectorizedTrainer:
        return VectorizedTrainer(trainer, refuse if record else None)

    monkeypatch.setattr(VectorizedTrainer, "of", of)
    host_factory, sentences = recipe_of(tmp_path), list[str]()
    start = beginning(host_factory)
    with VectorizedEngine().open(host_factory, on_notice=sentences.append) as grid:
        found = [states(list(grid.send_and_receive(orders(host_factory, start)))) for _ in range(2)]
    assert sentences == [
        "steps are launched kernel by kernel, as none could be recorded: this device records nothing"
    ]
    with VectorizedEngine(record=False).open(host_factory, on_notice=sentences.append) as grid:
        wanted = states(list(grid.send_and_receive(orders(host_factory, start))))
    assert len(sentences) == 1
    for client, state in wanted.items():
        torch.testing.assert_close(found[1][client], state, rtol=1e-5, atol=1e-5)


def test_a_device_that_is_full_gets_smaller_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences: list[str] = []
    train, sizes = VectorizedTrainer.train, list[int]()

    def full(self: VectorizedTrainer, requests: Sequence[TrainRequest]) -> Any:
        sizes.append(len(requests))
        if len(requests) > 2:
            raise torch.OutOfMemoryError("no room")
        return train(self, requests)

    monkeypatch.setattr(VectorizedTrainer, "train", full)
    host_factory = recipe_of(tmp_path)
    start = beginning(host_factory)
    with VectorizedEngine(stack=5).open(host_factory, on_notice=sentences.append) as grid:
        assert isinstance(grid, VectorizedGrid)
        for _ in range(2):
            replies = list(grid.send_and_receive(orders(host_factory, start)))
            assert len(states(replies)) == 5
    # Five do not fit, so two at a time and the last alone; the next round begins with two.
    assert sizes == [5, 2, 2, 2, 2]
    assert sentences == ["5 clients at once do not fit into the device's memory"]


def test_other_messages_and_other_hosts_are_served_one_by_one(tmp_path: Path) -> None:
    with VectorizedEngine().open(AppRecipe(app=counting_app, clients=4)) as grid:
        replies = list(grid.send_and_receive(order(grid, 3, 1)))
        assert {r.metadata.src_node_id: r.has_error() for r in replies} == {1003: True, 1001: False}
    host_factory = recipe_of(tmp_path, evaluation={"holdout": 0.3})
    start = beginning(host_factory)
    content = orders(host_factory, start)[0].content
    messages = [Message(content, FIRST_NODE + k, MessageType.EVALUATE) for k in (1, 0)]
    with VectorizedEngine().open(host_factory) as grid:
        counted = [codec.decode_evaluation(r.content).examples for r in grid.send_and_receive(messages)]
    assert counted == [len(host_factory.trainer().shards.test(k)) for k in (1, 0)]


def test_a_negative_stack_is_refused() -> None:
    with pytest.raises(PluginError, match="stack must be >= 0"):
        build("engine", PluginSpec(use="vectorized", args={"stack": -1}))


def test_loss_that_sees_the_model(tmp_path: Path) -> None:
    """A loss that sees the model is trained one by one to the serial bits."""
    config = tiny(strategy={"use": "fedntd"}, rounds=2)
    serial = simulate(config, out=tmp_path / "serial")
    stacked = simulate(config, engine="vectorized", out=tmp_path / "vectorized")
    assert all(torch.equal(stacked.state[name], tensor) for name, tensor in serial.state.items())
    notices = stacked.folder.summary()["notices"]
    reason = "the loss of FedNTDClient calls the model, which several clients do not share"
    assert notices.count(f"clients are trained one by one: {reason}") == 1
