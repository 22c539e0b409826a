"""The vectorized engine: the same replies as the serial one, and a bad client fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedvision import simulate
from fedvision.engines.serial import SerialEngine
from fedvision.engines.vectorized import VectorizedEngine, VectorizedGrid
from fedvision.errors import PluginError
from fedvision.federation import Federation
from fedvision.flower import codec
from fedvision.flower.hosting import SimulatedClients
from fedvision.flower.roster import FIRST_NODE
from fedvision.models.state import get_state, travelling
from fedvision.registry import build
from fedvision.strategies.averaging import FedAvg
from fedvision.strategies.mean import Sums
from fedvision.training.crew import Crew
from fedvision.training.worker import Worker
from fedvision.types import Instruction, PluginSpec, State, Task
from tests.engines.hosts import AppRecipe
from tests.engines.test_serial import counting_app, order
from tests.experiments import tiny

COHORT = [3, 0, 4, 1, 2]


def recipe_of(folder: Path, **tables: Any) -> SimulatedClients:
    """Return the recipe of a strategy that must see every update, unless another one is given."""
    federation = Federation.build(tiny(**{"strategy": {"use": "median"}, **tables}))
    return SimulatedClients(
        config=federation.config,
        dataset=federation.dataset,
        split=federation.split,
        model=federation.model,
        memory=folder / "clients",
    )


def orders(recipe: SimulatedClients, state: State, **instruction: Any) -> list[Message]:
    config = ConfigRecord({codec.ROUND: 1})
    told = Instruction(**instruction)
    return [
        Message(codec.encode_instruction(told, codec.encode_state(state), config), FIRST_NODE + k, "train")
        for k in COHORT
    ]


def beginning(recipe: SimulatedClients) -> State:
    return get_state(recipe.model, travelling(recipe.model, recipe.config.model.travel))


def states(replies: Sequence[Message]) -> dict[int, State]:
    return {
        reply.metadata.src_node_id - FIRST_NODE: codec.decode_state(reply.content.array_records["arrays"])
        for reply in replies
    }


@pytest.mark.parametrize("strategy", [{"use": "fedavg"}, {"use": "scaffold"}, {"use": "fedprox", "mu": 0.1}])
def test_a_whole_run_is_that_of_the_serial_engine(strategy: dict[str, Any], tmp_path: Path) -> None:
    tables = {"strategy": {**strategy, "fraction": 0.8}, "loss": {"use": "weighted"}}
    config = tiny(training={"lr": 0.1, "momentum": 0.9, "batch_size": 16}, **tables)
    runs = [simulate(config, engine=engine, out=tmp_path / engine) for engine in ("serial", "vectorized")]
    for name, tensor in runs[0].state.items():
        torch.testing.assert_close(runs[1].state[name], tensor, rtol=1e-4, atol=1e-4)
    for mine, his in zip(runs[1].rounds, runs[0].rounds, strict=True):
        assert mine["train_loss"] == pytest.approx(his["train_loss"], rel=1e-4)
        assert (mine["clients"], mine["bytes"]) == (his["clients"], his["bytes"])


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of clients of each stack."""
    sizes: list[int] = []
    train = Crew.train

    def count(self: Crew, tasks: Sequence[Task]) -> Any:
        sizes.append(len(tasks))
        return train(self, tasks)

    monkeypatch.setattr(Crew, "train", count)
    return sizes


def test_training_goes_in_stacks_of_k_the_longest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, said = watched(monkeypatch), list[str]()
    recipe = recipe_of(tmp_path)
    start = beginning(recipe)
    with VectorizedEngine(stack=2).open(recipe, tell=said.append) as grid:
        replies = list(grid.send_and_receive(orders(recipe, start)))
    assert sizes == [2, 2]
    clients = [reply.metadata.src_node_id - FIRST_NODE for reply in replies]
    assert clients == sorted(COHORT, key=lambda k: -recipe.cost(k))
    assert said == []
    with SerialEngine().open(recipe) as grid:
        wanted = states(list(grid.send_and_receive(orders(recipe, start))))
    found = states(replies)
    for client, state in wanted.items():
        torch.testing.assert_close(found[client], state, rtol=1e-5, atol=1e-5)


def test_a_stack_works_only_when_its_replies_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = watched(monkeypatch)
    recipe = recipe_of(tmp_path)
    start = beginning(recipe)
    with VectorizedEngine(stack=2).open(recipe) as grid:
        replies = iter(grid.send_and_receive(orders(recipe, start)))
        assert sizes == []
        next(replies)
        assert sizes == [2]


def test_a_bad_client_fails_alone_and_a_person_is_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    recipe = recipe_of(tmp_path)
    start = beginning(recipe)
    messages = orders(recipe, start, objective="prox", numbers={"mu": 0.1})
    good = messages[1].content
    lame = RecordDict(
        {"arrays": good["arrays"], "config": ConfigRecord({codec.ROUND: 1, "objective": "prox"})}
    )
    broken = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord()})
    messages[2] = Message(lame, messages[2].metadata.dst_node_id, "train")
    messages[4] = Message(broken, messages[4].metadata.dst_node_id, "train")
    with VectorizedEngine().open(recipe, tell=said.append) as grid:
        for _ in range(2):
            replies = list(grid.send_and_receive(messages))
            errors = {r.metadata.src_node_id - FIRST_NODE: r.error.reason for r in replies if r.has_error()}
            assert set(errors) == {COHORT[2], COHORT[4]}
            assert "got no number 'mu'" in (errors[COHORT[2]] or "")
    assert len(said) == 1
    assert said[0].startswith("4 clients are trained one by one, as they failed at once: client 4, training")


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"model": {"use": "rnn", "hidden": 8}}, "torch's recurrent layers (features.recurrent)"),
        ({"transforms": {"mixup": 0.2}}, "mixup blends"),
    ],
)
def test_what_cannot_be_stacked_is_trained_as_ever_and_said_once(
    tables: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    said: list[str] = []
    recipe = recipe_of(tmp_path, **tables)
    start = beginning(recipe)
    with VectorizedEngine().open(recipe, tell=said.append) as grid:
        found = [states(list(grid.send_and_receive(orders(recipe, start)))) for _ in range(2)]
    with SerialEngine().open(recipe) as grid:
        wanted = states(list(grid.send_and_receive(orders(recipe, start))))
    for client, state in wanted.items():
        assert all(torch.equal(found[1][client][name], tensor) for name, tensor in state.items())
    assert len(said) == 1
    assert said[0].startswith(f"clients are trained one by one: {reason}")


def test_a_stack_is_answered_with_its_sum_where_the_strategy_needs_no_more(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, strategy={"use": "fedavg"})
    start = beginning(recipe)
    with VectorizedEngine(stack=2).open(recipe) as grid:
        assert isinstance(grid, VectorizedGrid)
        assert grid.folds
        replies = list(grid.send_and_receive(orders(recipe, start)))
    assert {reply.metadata.src_node_id - FIRST_NODE for reply in replies} == set(COHORT)
    assert [codec.is_folded(reply.content) for reply in replies] == [True] * 5
    sums, apart = Sums(FedAvg(), start), Sums(FedAvg(), start)
    for reply in replies:
        codec.decode_sums(reply.content, sums)
    assert sums.heard == 5
    with SerialEngine().open(recipe) as grid:
        for reply in grid.send_and_receive(orders(recipe, start)):
            apart.add(codec.decode_update(reply.content, 0, 0))
    torch.testing.assert_close(sums.conclude(), apart.conclude(), rtol=1e-5, atol=1e-5)


def test_what_was_summed_before_an_error_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Crew.train

    def stumble(self: Crew, tasks: Sequence[Task]) -> Any:
        yield next(iter(train(self, tasks, chunk=3)))
        raise ValueError("a wire came loose")

    monkeypatch.setattr(Crew, "train", stumble)
    recipe, said = recipe_of(tmp_path, strategy={"use": "fedavg"}), list[str]()
    start = beginning(recipe)
    with VectorizedEngine().open(recipe, tell=said.append) as grid:
        replies = list(grid.send_and_receive(orders(recipe, start)))
    sums = Sums(FedAvg(), start)
    for reply in replies:
        codec.decode_sums(reply.content, sums)
    assert (len(replies), sums.heard) == (5, 5)
    assert said == ["5 clients are trained one by one, as they failed at once: a wire came loose"]


def test_steps_that_cannot_be_recorded_are_taken_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(step: Any) -> Any:
        raise RuntimeError("this device records nothing")

    def of(worker: Worker, *, record: bool = True) -> Crew:
        return Crew(worker, refuse if record else None)

    monkeypatch.setattr(Crew, "of", of)
    recipe, said = recipe_of(tmp_path), list[str]()
    start = beginning(recipe)
    with VectorizedEngine().open(recipe, tell=said.append) as grid:
        found = [states(list(grid.send_and_receive(orders(recipe, start)))) for _ in range(2)]
    assert said == [
        "steps are launched kernel by kernel, as none could be recorded: this device records nothing"
    ]
    with VectorizedEngine(record=False).open(recipe, tell=said.append) as grid:
        wanted = states(list(grid.send_and_receive(orders(recipe, start))))
    assert len(said) == 1
    for client, state in wanted.items():
        torch.testing.assert_close(found[1][client], state, rtol=1e-5, atol=1e-5)


def test_a_device_that_is_full_gets_smaller_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    train, sizes = Crew.train, list[int]()

    def full(self: Crew, tasks: Sequence[Task]) -> Any:
        sizes.append(len(tasks))
        if len(tasks) > 2:
            raise torch.OutOfMemoryError("no room")
        return train(self, tasks)

    monkeypatch.setattr(Crew, "train", full)
    recipe = recipe_of(tmp_path)
    start = beginning(recipe)
    with VectorizedEngine(stack=5).open(recipe, tell=said.append) as grid:
        assert isinstance(grid, VectorizedGrid)
        for _ in range(2):
            replies = list(grid.send_and_receive(orders(recipe, start)))
            assert len(states(replies)) == 5
    # Five do not fit, so two at a time and the last alone; the next round begins with two.
    assert sizes == [5, 2, 2, 2, 2]
    assert said == ["5 clients at once do not fit into the device's memory"]


def test_other_messages_and_other_hosts_are_served_one_by_one(tmp_path: Path) -> None:
    with VectorizedEngine().open(AppRecipe(app=counting_app, clients=4)) as grid:
        replies = list(grid.send_and_receive(order(grid, 3, 1)))
        assert {r.metadata.src_node_id: r.has_error() for r in replies} == {1003: True, 1001: False}
    recipe = recipe_of(tmp_path, evaluation={"holdout": 0.3})
    start = beginning(recipe)
    content = orders(recipe, start)[0].content
    messages = [Message(content, FIRST_NODE + k, MessageType.EVALUATE) for k in (1, 0)]
    with VectorizedEngine().open(recipe) as grid:
        counted = [codec.decode_evaluation(r.content).examples for r in grid.send_and_receive(messages)]
    assert counted == [len(recipe.worker().shards.test(k)) for k in (1, 0)]


def test_a_negative_stack_is_refused() -> None:
    with pytest.raises(PluginError, match="stack must be >= 0"):
        build("engine", PluginSpec(use="vectorized", args={"stack": -1}))
