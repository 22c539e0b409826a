"""Expansions of features: by hand, exact in any batch, and heads on them by every path."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvision.algorithms.closed_form import rounding
from fedvision.api import RunResult, simulate
from fedvision.config import ExperimentConfig, ModelConfig
from fedvision.errors import ConfigError, PluginError
from fedvision.experiment import Experiment
from fedvision.models.base import ImageModel
from fedvision.models.expansions import BucketGroups, ExpandedLinear, Expansion, RandomRelu, short, with_seed
from fedvision.trained_model import load
from fedvision.unlearning import unlearn
from tests.experiments import tiny

RELU = {"use": "random-relu", "features": 60}
GROUPS = {"use": "bucket-groups", "digits": 3}


def features(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1)) + 1


def test_random_relu_by_hand() -> None:
    """Two features, of which the second has mean 1 and deviation 4: q = 256 and -1023, cut off."""
    expansion = RandomRelu(in_features=2, features=3, seed=5)
    expansion.mean.copy_(torch.tensor([0.0, 1.0]))
    expansion.deviation.copy_(torch.tensor([1.0, 4.0]))
    sums = expansion.weight @ torch.tensor([256.0, -1023.0])
    wanted = torch.relu(sums / (128 * 2**0.5) + expansion.shift)
    assert torch.equal(expansion(torch.tensor([[2.0, -99.0]]))[0], wanted)
    assert set(expansion.weight.flatten().tolist()) <= {-1.0, 1.0}
    assert bool((wanted > 0).any())


def test_bucket_groups_by_hand() -> None:
    """Thresholds at -0.67, 0, 0.67 of a deviation: a feature's digits are 000, 100, 110 or 111."""
    expansion = BucketGroups(in_features=2, thresholds=3, digits=2, seed=5)
    cuts = [round(128 * NormalDist().inv_cdf(k / 4)) for k in (1, 2, 3)]
    assert expansion.threshold.tolist() == cuts == [-86, 0, 86]
    found = expansion(torch.tensor([[0.5, -0.5], [-1.0, 1.0]]))
    digits = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]])[:, expansion.order].reshape(2, 3, 2)
    numbers = digits[..., 0] + 2 * digits[..., 1]
    assert torch.equal(found, nn.functional.one_hot(numbers, 4).flatten(1).float())
    assert sorted(expansion.order.tolist()) == list(range(6))


def test_a_constant_that_moved_by_a_few_bits_is_what_it_was() -> None:
    numbers = features(1000).abs() + 1e-3
    found = short(numbers)
    assert float(((found - numbers) / numbers).abs().max()) <= 2**-16
    assert torch.equal(short(found), found)
    for direction in (-1e9, 1e9):
        moved = found
        for _ in range(20):
            moved = torch.nextafter(moved, torch.full_like(moved, direction))
        assert torch.equal(short(moved), found)


def test_every_digit_is_taken_as_often_up_to_one() -> None:
    for groups, digits in ((0, 4), (3, 4), (11, 4), (1, 3)):
        expansion = BucketGroups(in_features=5, thresholds=2, digits=digits, groups=groups)
        often = torch.bincount(expansion.order, minlength=10)
        assert expansion(features(2, 5)).shape == (2, expansion.out_features)
        assert expansion.out_features == (groups or 3) * 2**digits
        assert int(often.max() - often.min()) <= 1


@pytest.mark.parametrize("kind", [RandomRelu, BucketGroups])
def test_the_bits_do_not_depend_on_the_batch_and_follow_from_the_seed(kind: Any) -> None:
    expansion, x = kind(in_features=200, seed=2), features(64, 200)
    whole = expansion(x)
    assert torch.equal(torch.cat([expansion(one[None]) for one in x]), whole)
    assert torch.equal(kind(in_features=200, seed=2)(x), whole)
    assert not torch.equal(kind(in_features=200, seed=3)(x), whole)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(expansion(x), whole)
    assert list(expansion.state_dict()) == ["mean", "deviation"], "nothing that is drawn is sent"


def test_a_feature_that_is_seldom_1_is_not_cut_off() -> None:
    """1 of 10,000 images: without the least deviation of 1/8 it would be 100 deviations from its mean."""
    ones = np.array([1, 5000, 10_000, 0]) * rounding.GRID
    found = rounding.constants(10_000, ones, ones)
    assert found["deviation"].tolist() == [0.125, 0.5, 0.125, 2.0**-12]
    steps = rounding.rounded(torch.ones(1, 4), found)[0].tolist()
    assert steps[:3] == [min(round((1 - 1e-4) * 1024), 1023), 128, 0]


def test_sums_that_are_not_exact_are_refused() -> None:
    assert RandomRelu(in_features=16_399, features=1).weight.shape == (1, 16_399)
    with pytest.raises(ValueError, match="sums of 16401 features are not exact; it takes 16400 at most"):
        RandomRelu(in_features=16_401, features=1)


def expanded(expand: Any, **tables: Any) -> Any:
    model = {"use": "cnn", "width": 4, "dense": 64, "frozen": ["backbone.*"], "expand": expand}
    base: dict[str, Any] = {
        "rounds": 1,
        "model": model,
        "strategy": {"use": "closed-form"},
        "training": {"device": "cpu"},
    }
    return tiny(**base | tables)


@pytest.fixture(scope="module", params=[RELU, GROUPS], ids=["random-relu", "bucket-groups"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, RunResult]:
    """Five unlike clients."""
    out = tmp_path_factory.mktemp("expanded") / "run"
    return request.param, simulate(expanded(request.param), out=out)


@pytest.mark.slow
def test_any_division_gives_the_same_head(run: tuple[Any, RunResult], tmp_path: Path) -> None:
    """One split against another, cached or not, serial or vectorized: the images are the same."""
    expand, found = run
    width = 60 if expand is RELU else -(-64 // 3) * 8
    assert found.state["head.weight"].shape == (10, width)
    partition = {"use": "iid", "clients": 9, "imbalance": 10}
    uncached = {"device": "cpu", "cache_features": False}
    for name, tables, engine in (
        ("iid", {"partition": partition}, "serial"),
        ("uncached", {"partition": partition, "training": uncached}, "vectorized"),
    ):
        other = simulate(expanded(expand, **tables), out=tmp_path / name, engine=engine, threads=2)
        assert other.rounds[0]["examples"] == found.rounds[0]["examples"]
        assert other.state.keys() == found.state.keys()
        assert all(torch.equal(other.state[one], tensor) for one, tensor in found.state.items())
    assert set(found.rounds[0]["statistics"]) == {"feature-sums", "feature-sums (2)", "weighted-products"}


@pytest.mark.slow
def test_the_final_model_predicts_what_the_run_measured(run: tuple[Any, RunResult]) -> None:
    _, found = run
    images = Experiment.build(expanded(RELU)).dataset.test
    assert images is not None
    model = load(found.folder.path)
    right = np.mean(model.predict(images.images).labels == images.labels)
    assert right == pytest.approx(found.scores["accuracy"])
    assert right > 0.5
    assert isinstance(model.network, ImageModel)
    assert isinstance(model.network.head, ExpandedLinear)
    assert model.description.model.expand.args["seed"] == 3
    x = torch.from_numpy(images.images[:200]).permute(0, 3, 1, 2)
    with torch.no_grad():
        inputs = model.network.backbone((x / 255 - 0.5) / 0.25)
    spread = ((inputs - found.state["head.expansion.mean"]) / found.state["head.expansion.deviation"]).std(0)
    assert 0.7 < float(spread[spread > 0].median()) < 1.4, "the constants are those of the features"


@pytest.mark.slow
def test_auto_and_lda_and_unlearning_take_expanded_features(
    run: tuple[Any, RunResult], tmp_path: Path
) -> None:
    expand, found = run
    strategy = {"use": "closed-form", "head": "lda", "shrinkage": "auto"}
    auto = simulate(expanded(expand, strategy=strategy, evaluation={"holdout": 0.2}), out=tmp_path / "auto")
    recalls = auto.rounds[0]["strategy"]["macro recall"]
    assert max(recalls.values()) > 0.5
    without = unlearn(found.folder.path, [2], out=tmp_path / "without")
    assert not torch.equal(without.state["head.weight"], found.state["head.weight"])
    assert torch.equal(without.state["head.expansion.mean"], found.state["head.expansion.mean"])


@pytest.mark.slow
def test_a_head_is_trained_further_from_the_closed_form(run: tuple[Any, RunResult], tmp_path: Path) -> None:
    """The constants travel with the weights and stay, on every engine; another seed's head begins anew."""
    expand, found = run
    tables: dict[str, Any] = {
        "strategy": {"use": "fedavg"},
        "rounds": 2,
        "training": {"device": "cpu", "lr": 0.01},
    }
    model = {**expanded(expand).to_dict()["model"], "weights": str(found.folder.path)}
    serial, vectorized = (
        simulate(expanded(expand, model=model, **tables), out=tmp_path / engine, engine=engine)
        for engine in ("serial", "vectorized")
    )
    torch.testing.assert_close(vectorized.state, serial.state, rtol=1e-3, atol=1e-5)
    # Averaging may move the constants' last bits, and no feature by it.
    x = features(50, 64)
    expansions = [load(one.folder.path).network.head.expansion for one in (found, serial, vectorized)]  # type: ignore[union-attr]
    assert torch.count_nonzero(expansions[0](x))  # type: ignore[operator]
    assert all(torch.equal(one(x), expansions[0](x)) for one in expansions[1:])  # type: ignore[operator]
    assert not torch.equal(serial.state["head.weight"], found.state["head.weight"])
    built = Experiment.build(expanded(expand, model=model, seed=4, **tables))
    assert built.weights is not None
    assert "its head is another one or takes other features" in built.weights.notices[0]
    assert torch.count_nonzero(built.model.state_dict()["head.expansion.mean"]) == 0
    plain = {key: value for key, value in model.items() if key != "expand"}
    built = Experiment.build(expanded(expand, model=plain, **tables))
    assert built.weights is not None
    assert "its head is another one or takes other features" in built.weights.notices[0]


def test_that_nobody_measured_the_features_is_said() -> None:
    sentence = "model.expand expects standardised features, and nobody has measured these"
    said = Experiment.build(expanded(RELU, strategy={"use": "fedavg"})).notices()
    assert any(sentence in one for one in said)
    assert not any(sentence in one for one in Experiment.build(expanded(RELU)).notices())


def test_a_seed_that_is_given_stays() -> None:
    assert with_seed(ModelConfig(), 4) == ModelConfig()
    config = expanded({**RELU, "seed": 7}).model
    assert with_seed(config, 4) == config
    assert with_seed(expanded(RELU).model, 4).expand.args["seed"] == 4


class NoExpansion(nn.Linear):
    """Takes the argument of one."""

    def __init__(self, *, in_features: int, seed: int) -> None:
        super().__init__(in_features, 2)


class Doubled(Expansion):
    """Somebody's own: each feature twice."""

    def __init__(self, *, in_features: int, seed: int) -> None:
        super().__init__(in_features, 2 * in_features)

    def expand(self, steps: torch.Tensor) -> torch.Tensor:
        return torch.cat([steps, -steps], -1)


def test_an_expansion_of_ones_own() -> None:
    head = Experiment.build(expanded(f"{__name__}:Doubled")).model.head  # type: ignore[union-attr]
    assert (head.in_features, head.out_features) == (128, 10)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("expand", "model", "error", "message"),
    [
        ("random-rely", {}, PluginError, "did you mean 'random-relu'"),
        ({"features": 3}, {}, ConfigError, "model.expand needs a key use"),
        ({"use": "random-relu", "features": 0}, {}, PluginError, "features must be >= 1"),
        (RELU, {"frozen": []}, ConfigError, "needs a backbone that nobody trains"),
        (RELU, {"frozen": [], "train": "lora"}, ConfigError, "needs a backbone that nobody trains"),
        (RELU, {"shared": "trainable"}, ConfigError, "'head.expansion.mean' stays on the clients"),
        (f"{__name__}:NoExpansion", {}, ConfigError, "it is a NoExpansion, not a"),
        ({"use": "random-relu", "features": 9000}, {}, ConfigError, "8,192 features at most, and .* 9,000"),
    ],
)
def test_what_cannot_work(expand: Any, model: dict[str, Any], error: type[Exception], message: str) -> None:
    own = {"use": "cnn", "width": 4, "dense": 64, "frozen": ["backbone.*"], "expand": expand}
    with pytest.raises(error, match=message):
        Experiment.build(ExperimentConfig.from_dict(expanded(RELU).to_dict() | {"model": own | model}))
