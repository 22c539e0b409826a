"""Many clients of one worker: what they remember, what is stacked, and what is trained one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvision.config import ExperimentConfig
from fedvision.data.shards import Shard
from fedvision.models.state import get_state, load_state, travelling
from fedvision.training import crew as room
from fedvision.training.crew import Crew
from fedvision.training.loop import LocalUpdate
from fedvision.training.memory import ClientMemory
from fedvision.training.objectives import Objective
from fedvision.training.stack import Stacked
from fedvision.training.worker import Worker
from fedvision.types import Instruction, State, Task
from tests.training.crowd import CLASSES, SIZES, assert_equal, make_shards, network, noise


class Fixed:
    """The clients of the crowd, who keep their first three images from training."""

    def __init__(self) -> None:
        self.shards = make_shards()

    def train(self, client: int) -> Shard:
        return self.shards[client]

    def test(self, client: int) -> Shard:
        return self.shards[client]


def make_worker(folder: Path, model_of_all: torch.nn.Module | None = None, **tables: Any) -> Worker:
    base = {"data": {"use": "digits"}, "training": {"batch_size": 8, "epochs": 2}, "rounds": 5}
    config = ExperimentConfig.from_dict(base | {"loss": {"use": "weighted"}} | tables)
    return Worker.open(config, model_of_all or network(), CLASSES, Fixed(), ClientMemory(folder))


def tasks_of(worker: Worker, round: int, *objectives: str | None, seed: int = 1) -> list[Task]:
    """Return a task for each objective; client k gets the k-th."""
    start = get_state(network(), travelling(worker.model, worker.config.model.travel))
    told = {
        None: Instruction(),
        "prox": Instruction(objective="prox", numbers={"mu": 0.3}),
        "scaffold": Instruction(objective="scaffold", tensors={"control": noise(start, seed)}),
    }
    return [
        Task(round=round, client=k, state=start, instruction=told.get(o, Instruction(objective=o)))
        for k, o in enumerate(objectives)
    ]


def trained(crew: Crew, tasks: Sequence[Task]) -> list[LocalUpdate]:
    """Return the updates of all clients, in the order of the tasks."""
    found: dict[int, LocalUpdate] = {}
    for places, some in crew.train(tasks):
        found |= zip(places, some.split() if isinstance(some, Stacked) else some, strict=True)
    return [found[place] for place in range(len(tasks))]


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that grows by the clients of each call of ``fit_many``."""
    seen: list[list[int]] = []
    fit_many = room.fit_many

    def watch(model: Any, shards: Any, tasks: Sequence[Task], **options: Any) -> Any:
        seen.append([task.client for task in tasks])
        return fit_many(model, shards, tasks, **options)

    monkeypatch.setattr(room, "fit_many", watch)
    return seen


def test_memories_are_recalled_and_saved_as_by_one(tmp_path: Path, stacks: list[list[int]]) -> None:
    one, many = make_worker(tmp_path / "one"), make_worker(tmp_path / "many")
    for round in (1, 2, 3):
        tasks = tasks_of(one, round, *["scaffold"] * len(SIZES), seed=round)
        assert_equal(trained(Crew(many), tasks), [one.train(task) for task in tasks])
    assert stacks == [list(range(len(SIZES)))] * 3
    for client in range(len(SIZES)):
        found, wanted = many.memory.load(client, 4), one.memory.load(client, 4)
        assert found.keys() == wanted.keys() == {"objective"}
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [("cnn", {"dropout": 0.5}), ("resnet8", {"norm": "batch"})])
def test_who_measures_first_trains_to_the_same_bits(
    model: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    own = {"model": {"travel": "no-batch-norm-statistics"}}
    plain, first = (
        make_worker(tmp_path / n, network(model[0], **model[1]), **own) for n in ("plain", "first")
    )
    for round in (1, 2):
        start = get_state(plain.model, travelling(plain.model, "no-batch-norm-statistics"))
        tasks = [Task(round=round, client=client, state=start) for client in range(4)]
        asking = [replace(task, measure=True) for task in tasks]
        wanted = [plain.evaluate(task.client, round - 1, start) for task in tasks]
        for train in (
            lambda w, some: trained(Crew(w), some),
            lambda w, some: [w.train(task) for task in some],
        ):
            updates, others = train(first, asking), train(plain, tasks)
            for update, other, counted in zip(updates, others, wanted, strict=True):
                assert update.measured is not None
                assert update.measured.confusion.tolist() == counted.confusion.tolist()
                assert (update.measured.loss_sum, other.measured) == (counted.loss_sum, None)
                for one, two in ((update.state, other.state), (update.personal, other.personal)):
                    assert all(torch.equal(one[name], two[name]) for name in two)


def test_personal_tensors_stay_with_their_client(tmp_path: Path) -> None:
    class Biased(torch.nn.Module):
        """A network with a fixed tensor that does not travel, different at each client."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network()
            self.register_buffer("shift", torch.zeros(CLASSES))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(images) + self.shift
            return logits

    def of(name: str) -> Worker:
        base = {"data": {"use": "digits"}, "training": {"batch_size": 8}, "model": {"travel": "trainable"}}
        config = ExperimentConfig.from_dict(base)
        made = Worker.open(config, Biased(), CLASSES, Fixed(), ClientMemory(tmp_path / name))
        for client in range(3):  # client 3 remembers nothing
            kept = {"personal": {"shift": torch.arange(CLASSES) * 0.5 * client}}
            made.memory.save(client, 1, kept)
        return made

    one, many = of("one"), of("many")
    start = get_state(one.model, travelling(one.model, "trainable"))
    tasks = [Task(round=2, client=client, state=start) for client in range(4)]
    updates = trained(Crew(many), tasks)
    load_state(one.model, start)
    assert_equal(updates, [one.train(task) for task in tasks])
    assert float(many.memory.load(2, 3)["personal"]["shift"][3]) == 3.0
    assert float(many.memory.load(3, 3)["personal"]["shift"][3]) == 0.0


def test_only_clients_of_one_objective_and_round_are_stacked(tmp_path: Path, stacks: list[list[int]]) -> None:
    one, many = make_worker(tmp_path / "one"), make_worker(tmp_path / "many")
    tasks = tasks_of(one, 2, "prox", None, "prox", None, "scaffold")
    tasks[3] = replace(tasks[3], round=4)
    assert_equal(trained(Crew(many), tasks), [one.train(task) for task in tasks])
    assert stacks == [[0, 2]]


class Half(Objective):
    """A guest's objective, which knows one client only."""

    def begin(self, parameters: Any, task: Task, memory: State) -> None:
        self.parameters = list(parameters.values())

    def adjust(self) -> None:
        for parameter in self.parameters:
            parameter.grad = parameter.grad / 2


def test_a_guests_objective_is_trained_one_by_one(tmp_path: Path, stacks: list[list[int]]) -> None:
    one, many = make_worker(tmp_path / "one"), make_worker(tmp_path / "many")
    use = f"{__name__}:Half"
    tasks = tasks_of(one, 1, use, use, use)
    obstacle = Crew(many).obstacle(tasks[0])
    assert obstacle == f"the objective {use!r} has no formula that serves several clients"
    assert_equal(trained(Crew(many), tasks), [one.train(task) for task in tasks])
    assert stacks == []


def test_the_losses_prior_may_be_the_federations(tmp_path: Path) -> None:
    tables = {"loss": {"use": "logit-adjusted", "prior": "global"}}
    one, many = make_worker(tmp_path / "one", **tables), make_worker(tmp_path / "many", **tables)
    tasks = [replace(task, counts=(50, 20, 10, 1)) for task in tasks_of(one, 1, None, None, None)]
    updates = trained(Crew(many), tasks)
    assert_equal(updates, [one.train(task) for task in tasks])
    own = trained(Crew(many), [replace(task, counts=None) for task in tasks])
    assert not torch.equal(own[0].state["head.bias"], updates[0].state["head.bias"])


def test_a_network_that_cannot_be_stacked_is_tried_once(
    tmp_path: Path, stacks: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(room, "stackable", lambda *args, **options: tried.append(1) or "it is shy")
    worker = make_worker(tmp_path)
    crew, tasks = Crew(worker), tasks_of(worker, 1, None, None)
    for _ in range(2):
        trained(crew, tasks)
        assert crew.obstacle(tasks[0]) == "it is shy"
    assert (tried, stacks) == ([1], [])


def test_rates_of_their_own_keep_an_optimiser_that_does_not_scale_out_of_the_stack(tmp_path: Path) -> None:
    task = tasks_of(make_worker(tmp_path), 1, None)[0]
    own = replace(task, instruction=Instruction(lr_factor=0.5))
    assert Crew(make_worker(tmp_path)).obstacle(own) is None
    crew = Crew(make_worker(tmp_path, training={"batch_size": 8, "optimizer": "rprop"}))
    assert crew.obstacle(task) is None
    assert crew.obstacle(own) == (
        "the optimiser 'rprop' has no stacked form for clients with learning rates of their own"
    )
