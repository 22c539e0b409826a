"""Runs of heads in closed form: the same bits for any number of clients, any division and any engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedvision.api import RunResult, simulate
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.reporting.inspect_experiment import inspect_experiment
from fedvision.trained_model import load
from tests.experiments import tiny

IID: dict[str, Any] = {"use": "iid", "clients": 2}


def closed(partition: dict[str, Any], **tables: Any) -> ExperimentConfig:
    base: dict[str, Any] = {
        "rounds": 1,
        "partition": partition,
        "model": {"use": "cnn", "width": 4, "dense": 64, "frozen": ["backbone.*"]},
        "strategy": {"use": "closed-form"},
        "training": {"device": "cpu"},
    }
    return tiny(**base | tables)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The run of two like clients, with which others are compared."""
    return simulate(closed(IID), out=tmp_path_factory.mktemp("two") / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "partition",
    [
        {"use": "iid", "clients": 500},
        {"use": "dirichlet", "clients": 20, "alpha": 0.5},
        {"use": "dirichlet", "clients": 20, "alpha": 0.01},
        {"use": "dirichlet", "clients": 2, "alpha": 0.01},
    ],
    ids=["500-iid", "20-dirichlet", "20-one-class-each", "2-one-class-each"],
)
def test_any_division_gives_the_same_model(partition: dict[str, Any], two: RunResult, tmp_path: Path) -> None:
    found = simulate(closed(partition), out=tmp_path / "run")
    assert found.rounds[0]["clients"] == list(range(partition["clients"]))
    assert found.rounds[0]["examples"] == two.rounds[0]["examples"] == 1442
    assert found.state.keys() == two.state.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(found.state[name], tensor) for name, tensor in two.state.items())
    assert found.rounds[0]["server"] == two.rounds[0]["server"]


@pytest.mark.slow
def test_features_that_are_not_kept_and_more_threads_give_the_same_model(
    two: RunResult, tmp_path: Path
) -> None:
    """As on clients' machines, where images pass the backbone for every query."""
    config = closed({"use": "iid", "clients": 7}, training={"device": "cpu", "cache_features": False})
    found = simulate(config, out=tmp_path / "run", threads=2)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in two.state.items())


def test_one_round_makes_a_model_that_serves(two: RunResult) -> None:
    (record,) = two.rounds
    assert set(record["statistics"]) == {"feature-sums", "weighted-products"}
    assert two.scores["accuracy"] > 0.7
    saved = load(two.folder.path)
    images = Experiment.build(closed(IID)).dataset.test
    assert images is not None
    assert (saved.predict(images.images).labels == images.labels).mean() == two.scores["accuracy"]
    features, classes = 64, 10
    products, sums = features * (features + 1) // 2, classes * (features + 1)
    width = record["bytes"]["up"] - 2 * 8 * (classes + 2 * features)
    assert width % (2 * (products + sums)) == 0
    assert width // (2 * (products + sums)) in (4, 5), "bytes a number"


def test_the_vectorized_engine_gives_the_same_bits(two: RunResult, tmp_path: Path) -> None:
    other = simulate(closed(IID), engine="vectorized", out=tmp_path / "vectorized")
    assert other.rounds == two.rounds
    assert all(torch.equal(other.state[name], tensor) for name, tensor in two.state.items())


def test_later_training_begins_from_the_head(two: RunResult) -> None:
    weights = {"use": "cnn", "width": 4, "dense": 64, "weights": str(two.folder.path)}
    begun = Experiment.build(closed(IID, model=weights, strategy={"use": "fedavg"})).model.state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in two.state.items())


@pytest.mark.parametrize("strategy", [{"regularization": "auto"}, {"head": "lda", "shrinkage": "auto"}])
def test_a_value_is_chosen_by_images_out_of_training(strategy: dict[str, Any], tmp_path: Path) -> None:
    config = closed(IID, strategy={"use": "closed-form", **strategy}, evaluation={"holdout": 0.2})
    found = simulate(config, out=tmp_path / "run")
    assert set(found.rounds[0]["statistics"]) == {"feature-sums", "weighted-products", "head-scores"}
    noted = found.rounds[0]["strategy"]
    (key,) = (name for name, value in strategy.items() if value == "auto")
    recalls = noted["macro recall"]
    assert recalls[f"{noted[key]:g}"] > max(recalls.values()) - 0.05
    page = " ".join((tmp_path / "run/report.html").read_text().split())
    assert f"The strategy worked with {key} {noted[key]:g}." in page
    assert found.scores["accuracy"] > 0.65


def test_what_the_queries_move_is_shown_before_the_run() -> None:
    """64 features, 10 classes: 10 + 2 * 64 numbers, then 10 + 640 + 64 * 65 / 2; and 2 * 64 + 10 back."""
    text = inspect_experiment(Experiment.build(closed(IID)))
    head, constants = 4 * (640 + 10), 8 * (2 * 64 + 10)
    down = f"{(2 * head + constants) / 1000:.3g} kB"
    assert f"nobody trains: a round sends {down} to each of 2 clients and asks it for feature-sums" in text
    assert "feature-sums (1.1 kB at most), weighted-products (21.8 kB at most)" in text
    assert "each way" not in text


def no_linear(*, num_classes: int, image_size: tuple[int, int]) -> torch.nn.Module:
    from fedvision.models.base import ImageModel

    head = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(image_size[0] * image_size[1], num_classes))
    return ImageModel(torch.nn.Flatten(), head)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": {"use": f"{__name__}:no_linear"}}, "writes a linear head with a bias"),
        ({"model": {"use": "cnn", "personal": ["head.*"]}}, "stays on the clients"),
        ({"strategy": {"use": "closed-form", "regularization": "auto"}}, r"set evaluation\.holdout > 0"),
        ({"update": [{"use": "float16"}]}, "has no client train"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(
    tables: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(closed(IID, **tables), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("train", ["lora", "last:1", "head"])
def test_training_in_part_begins_where_the_closed_form_ended(train: str, tmp_path: Path) -> None:
    """The head is kept, the model as it begins has the first run's scores, and then both parts move."""
    network: dict[str, Any] = {"use": "resnet8", "width": 8}
    first = simulate(closed(IID, model=network), out=tmp_path / "first")
    assert first.scores["accuracy"] > 0.5
    begun = network | {"weights": str(tmp_path / "first"), "train": train}
    start = Experiment.build(closed(IID, model=begun, strategy={"use": "fedavg"}))
    assert start.weights is not None
    assert start.weights.notices == ()
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    for name in ("head.weight", "head.bias"):
        assert torch.equal(before[name], first.state[name])
    measured = simulate(closed(IID, model=begun, strategy={"use": "zero-shot"}), out=tmp_path / "measured")
    assert measured.rounds[0]["server"]["scores"] == first.rounds[0]["server"]["scores"]
    trained = simulate(
        closed(IID, model=begun, strategy={"use": "fedavg"}, training={"device": "cpu", "lr": 0.01}),
        out=tmp_path / "trained",
    )
    moved = {name for name, tensor in trained.state.items() if not torch.equal(tensor, before[name])}
    assert {"head.weight", "head.bias"} <= moved
    assert any(name.startswith("backbone.") for name in moved) == (train != "head")
    assert any("lora_b" in name for name in moved) == (train == "lora")
    assert trained.scores["accuracy"] > first.scores["accuracy"] - 0.2
