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
from fedvision.errors import ClientError
from fedvision.models.state import get_state, load_state, shared_names
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.client_state import ClientStateStore
from fedvision.training.client_trainer import ClientTrainer
from fedvision.training.loop import TrainResult
from fedvision.training.vectorized import trainer as module
from fedvision.training.vectorized.client_batch import ClientBatchResult, ClientJob
from fedvision.training.vectorized.trainer import VectorizedTrainer
from fedvision.types import ClientConfig, State, TrainRequest
from tests.training.client_cases import CLASSES, SIZES, assert_equal, make_shards, network, noise


class Fixed:
    """The clients of the cohort, which keep their first three images from training."""

    def __init__(self) -> None:
        self.shards = make_shards()

    def train(self, client: int) -> Shard:
        return self.shards[client]

    def test(self, client: int) -> Shard:
        return self.shards[client]


def make_worker(folder: Path, model_of_all: torch.nn.Module | None = None, **tables: Any) -> ClientTrainer:
    base = {"data": {"use": "digits"}, "training": {"batch_size": 8, "epochs": 2}, "rounds": 5}
    config = ExperimentConfig.from_dict(base | {"loss": {"use": "weighted"}} | tables)
    return ClientTrainer.open(config, model_of_all or network(), CLASSES, Fixed(), ClientStateStore(folder))


def tasks_of(
    trainer: ClientTrainer, round: int, *algorithms: str | None, seed: int = 1
) -> list[TrainRequest]:
    """Return a task for each algorithm; client k gets the k-th."""
    start = get_state(network(), shared_names(trainer.model, trainer.config.model.shared))
    configs = {
        None: ClientConfig(),
        "fedprox": ClientConfig(numbers={"mu": 0.3}),
        "scaffold": ClientConfig(tensors={"control": noise(start, seed)}),
    }
    return [
        TrainRequest(
            round=round, client=k, state=start, client_config=configs.get(o, ClientConfig()), algorithm=o
        )
        for k, o in enumerate(algorithms)
    ]


def trained(vectorized_trainer: VectorizedTrainer, requests: Sequence[TrainRequest]) -> list[TrainResult]:
    """Return the updates of all clients, in the order of the tasks."""
    found: dict[int, TrainResult] = {}
    for places, some in vectorized_trainer.train(requests):
        found |= zip(places, some.split() if isinstance(some, ClientBatchResult) else some, strict=True)
    return [found[place] for place in range(len(requests))]


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that grows by the clients of each call of ``fit_many``."""
    seen: list[list[int]] = []
    fit_many = module.fit_many

    def watch(model: Any, jobs: Sequence[ClientJob], **options: Any) -> Any:
        seen.append([job.request.client for job in jobs])
        return fit_many(model, jobs, **options)

    monkeypatch.setattr(module, "fit_many", watch)
    return seen


def test_memories_are_recalled_and_saved_as_by_one(tmp_path: Path, stacks: list[list[int]]) -> None:
    one, many = make_worker(tmp_path / "one"), make_worker(tmp_path / "many")
    for round in (1, 2, 3):
        requests = tasks_of(one, round, *["scaffold"] * len(SIZES), seed=round)
        assert_equal(trained(VectorizedTrainer(many), requests), [one.train(request) for request in requests])
    assert stacks == [list(range(len(SIZES)))] * 3
    for client in range(len(SIZES)):
        found, wanted = many.memory.load(client, 4), one.memory.load(client, 4)
        assert found.keys() == wanted.keys() == {"algorithm"}
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [("cnn", {"dropout": 0.5}), ("resnet8", {"norm": "batch"})])
def test_who_measures_first_trains_to_the_same_bits(
    model: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    own = {"model": {"shared": "no-batch-norm-statistics"}}
    plain, first = (
        make_worker(tmp_path / n, network(model[0], **model[1]), **own) for n in ("plain", "first")
    )
    for round in (1, 2):
        start = get_state(plain.model, shared_names(plain.model, "no-batch-norm-statistics"))
        requests = [TrainRequest(round=round, client=client, state=start) for client in range(4)]
        asking = [replace(request, measure=True) for request in requests]
        wanted = [plain.evaluate(request.client, round - 1, start) for request in requests]
        for train in (
            lambda w, some: trained(VectorizedTrainer(w), some),
            lambda w, some: [w.train(request) for request in some],
        ):
            updates, others = train(first, asking), train(plain, requests)
            for update, other, counted in zip(updates, others, wanted, strict=True):
                assert update.measured is not None
                assert update.measured.stats.tables().tolist() == counted.stats.tables().tolist()
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

    def of(name: str) -> ClientTrainer:
        base = {"data": {"use": "digits"}, "training": {"batch_size": 8}, "model": {"shared": "trainable"}}
        config = ExperimentConfig.from_dict(base)
        made = ClientTrainer.open(config, Biased(), CLASSES, Fixed(), ClientStateStore(tmp_path / name))
        for client in range(3):  # client 3 remembers nothing
            personal_names = {"personal": {"shift": torch.arange(CLASSES) * 0.5 * client}}
            made.memory.save(client, 1, personal_names)
        return made

    one, many = of("one"), of("many")
    start = get_state(one.model, shared_names(one.model, "trainable"))
    requests = [TrainRequest(round=2, client=client, state=start) for client in range(4)]
    updates = trained(VectorizedTrainer(many), requests)
    load_state(one.model, start)
    assert_equal(updates, [one.train(request) for request in requests])
    assert float(many.memory.load(2, 3)["personal"]["shift"][3]) == 3.0
    assert float(many.memory.load(3, 3)["personal"]["shift"][3]) == 0.0


def test_only_clients_of_one_algorithm_and_round_are_stacked(tmp_path: Path, stacks: list[list[int]]) -> None:
    one, many = make_worker(tmp_path / "one"), make_worker(tmp_path / "many")
    requests = tasks_of(one, 2, "fedprox", None, "fedprox", None, "scaffold")
    requests[3] = replace(requests[3], round=4)
    assert_equal(trained(VectorizedTrainer(many), requests), [one.train(request) for request in requests])
    assert stacks == [[0, 2]]


class Half(ClientAlgorithm):
    """A plug-in's algorithm, which knows one client only."""

    def begin(self, model: Any, parameters: Any, request: TrainRequest, memory: State) -> None:
        self.parameters = list(parameters.values())

    def after_backward(self) -> None:
        for parameter in self.parameters:
            parameter.grad = parameter.grad / 2


def test_a_plugins_algorithm_is_trained_one_by_one(tmp_path: Path, stacks: list[list[int]]) -> None:
    one, many = make_worker(tmp_path / "one"), make_worker(tmp_path / "many")
    use = f"{__name__}:Half"
    requests = tasks_of(one, 1, use, use, use)
    unsupported_reason = VectorizedTrainer(many).unsupported_reason(requests[0])
    assert unsupported_reason == "Half overrides after_backward, which has no form for several clients"
    assert_equal(trained(VectorizedTrainer(many), requests), [one.train(request) for request in requests])
    assert stacks == []


def test_the_losses_prior_may_be_the_federations(tmp_path: Path) -> None:
    tables = {"loss": {"use": "logit-adjusted", "prior": "global"}}
    one, many = make_worker(tmp_path / "one", **tables), make_worker(tmp_path / "many", **tables)
    requests = [replace(request, counts=(50, 20, 10, 1)) for request in tasks_of(one, 1, None, None, None)]
    updates = trained(VectorizedTrainer(many), requests)
    assert_equal(updates, [one.train(request) for request in requests])
    others = trained(VectorizedTrainer(many), [replace(request, counts=(1, 1, 1, 1)) for request in requests])
    assert not torch.equal(others[0].state["head.bias"], updates[0].state["head.bias"])


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [(None, "the message has none"), ((50, 20), "the message has those of 2 classes, and there are 4")],
)
def test_a_message_without_the_federations_counts_is_refused(
    tmp_path: Path, counts: tuple[int, ...] | None, sentence: str
) -> None:
    trainer = make_worker(tmp_path, loss={"use": "logit-adjusted", "prior": "global"})
    request = replace(tasks_of(trainer, 1, None)[0], counts=counts)
    with pytest.raises(ClientError, match=f"loss.prior is global: .* class counts, and {sentence}"):
        trainer.train(request)
    assert trainer.seconds_per_image(0, batches=1) > 0


def test_a_network_that_cannot_be_stacked_is_tried_once(
    tmp_path: Path, stacks: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(module, "supports_vmap", lambda *args, **options: tried.append(1) or "it is shy")
    trainer = make_worker(tmp_path)
    vectorized_trainer, requests = VectorizedTrainer(trainer), tasks_of(trainer, 1, None, None)
    for _ in range(2):
        trained(vectorized_trainer, requests)
        assert vectorized_trainer.unsupported_reason(requests[0]) == "it is shy"
    assert (tried, stacks) == ([1], [])


def test_learning_rates_by_client_need_a_scaling_optimiser(tmp_path: Path, stacks: list[list[int]]) -> None:
    """Rates of their own keep an optimiser that does not scale out of the stack."""
    request = tasks_of(make_worker(tmp_path), 1, None)[0]
    own = replace(request, client_config=ClientConfig(lr_factor=0.5))
    assert VectorizedTrainer(make_worker(tmp_path)).unsupported_reason(own) is None
    vectorized_trainer = VectorizedTrainer(
        make_worker(tmp_path, training={"batch_size": 8, "optimizer": "rprop"})
    )
    assert vectorized_trainer.unsupported_reason(request) is None
    assert vectorized_trainer.unsupported_reason(own) == (
        "the optimiser 'rprop' has no stacked form for clients with learning rates of their own"
    )
    # It is not the first of them alone that decides.
    trained(vectorized_trainer, [replace(own, client=1, client_config=ClientConfig()), own])
    assert stacks == []
