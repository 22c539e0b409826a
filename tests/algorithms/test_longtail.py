"""The method for long tails: its averaged head, and what it is without its parts."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from fedvision import simulate
from fedvision.algorithms.closed_form.heads import FeatureSums
from fedvision.algorithms.longtail import LongTail, energy
from fedvision.errors import ConfigError
from fedvision.models.base import ImageModel
from fedvision.models.standardised import STEPS
from tests.experiments import tiny

if TYPE_CHECKING:
    from fedvision.algorithms.base import ServerContext

ADJUSTED = {"use": "logit-adjusted", "prior": "global"}
OFF = {"use": "longtail", "momentum": 0.0, "share": 0.0}


def _sums() -> tuple[FeatureSums, torch.Tensor, torch.Tensor]:
    """Return sums over seven images of three classes, their features [7, 3], and their weights [7]."""
    steps = np.random.default_rng(0).integers(-300, 300, (7, 3))
    labels, weights = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([1, 2, 4])
    products = sum(weights[label] * np.outer(q, q) for q, label in zip(steps, labels, strict=True))
    held = FeatureSums(
        count=np.bincount(labels),
        sum=np.stack([steps[labels == label].sum(0) for label in range(3)]),
        product=products[np.triu_indices(3)],
        weight=weights,
    )
    return held, torch.from_numpy(steps / STEPS), torch.from_numpy(weights[labels]).double()


def test_energy_is_the_mean_square_of_centred_logits_with_classes_weighed_alike() -> None:
    held, features, own = _sums()
    generator = np.random.default_rng(1)
    mean, deviation = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.5, 2.0, 1.5]).double()
    weight, bias = torch.from_numpy(generator.normal(size=(3, 3))), torch.from_numpy(generator.normal(size=3))
    logits = (features * deviation + mean) @ weight.T + bias
    centred = (logits - logits.mean(1, keepdim=True)).square().mean(1)
    found = energy(weight, bias, held, {"mean": mean, "deviation": deviation})
    assert found == pytest.approx(float((own * centred).sum() / own.sum()), rel=1e-9)


def test_the_closed_form_is_brought_to_the_size_of_the_trained_heads_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, _, _ = _sums()
    constants = {"mean": torch.zeros(3).double(), "deviation": torch.ones(3).double()}
    trained = {"head.weight": torch.eye(3) * 5, "head.bias": torch.tensor([0.0, 1.0, 2.0])}
    other = {
        "head.weight": torch.tensor([[0.1, 0.2, 0.0]] * 2 + [[0.0, 0.0, 0.3]]),
        "head.bias": torch.ones(3),
    }
    own = LongTail(share=1.0)
    monkeypatch.setattr(own.closed_form, "refine", lambda state, server: state | other)
    monkeypatch.setattr(own.closed_form, "feature_sums", lambda: held)
    own.closed_form.constants = constants
    facts: dict[str, Any] = {}
    server = SimpleNamespace(
        answers=({}, {}), make_model=lambda _: ImageModel(nn.Identity(), nn.Linear(3, 3)), facts=facts
    )
    found = own.refine(trained, cast("ServerContext", server))

    def size(head: dict[str, torch.Tensor]) -> float:
        return energy(head["head.weight"].double(), head["head.bias"].double(), held, constants)

    assert size(found) == pytest.approx(size(trained), rel=1e-5)
    torch.testing.assert_close(found["head.weight"], facts["scale"] * other["head.weight"])


@pytest.mark.parametrize(
    ("loss", "said"),
    [({"use": "cross-entropy"}, 1), (ADJUSTED, 0), ({"use": "balanced-softmax", "prior": "mixed"}, 0)],
)
def test_a_loss_that_corrects_nothing_is_noticed(loss: dict[str, Any], said: int) -> None:
    assert len(LongTail().notices(tiny(loss=loss))) == said


@pytest.mark.slow
def test_without_its_parts_it_is_fedavg() -> None:
    own, other = (simulate(tiny(strategy=one)).state for one in (OFF, {"use": "fedavg"}))
    for name in other:
        torch.testing.assert_close(own[name], other[name], rtol=1e-5, atol=1e-6)


def test_with_momentum_alone_it_is_fedavgm_to_the_bit() -> None:
    tables = ({**OFF, "momentum": 0.7}, {"use": "fedavgm", "momentum": 0.7})
    own, other = (simulate(tiny(strategy=one)).state for one in tables)
    assert all(torch.equal(own[name], other[name]) for name in other)


def _run(**keys: Any) -> Any:
    return simulate(tiny(strategy={"use": "longtail", **keys}, loss=ADJUSTED))


@pytest.mark.slow
def test_only_the_last_round_queries_and_only_the_head_changes() -> None:
    with_head, without = _run(share=0.5), _run(share=0.0)
    asked = [sorted(record.get("statistics", {})) for record in with_head.rounds]
    assert asked == [[], [], ["feature-sums", "weighted-products"]]
    assert not any(record.get("statistics") for record in without.rounds)
    changed = {name for name, one in with_head.state.items() if not torch.equal(one, without.state[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.slow
def test_the_head_is_the_mean_of_the_trained_one_and_the_scaled_closed_form() -> None:
    trained, balanced, mean = (_run(share=share).state for share in (0.0, 1.0, 0.25))
    for name in ("head.weight", "head.bias"):
        expected = 0.75 * trained[name] + 0.25 * balanced[name]
        torch.testing.assert_close(mean[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_rare_classes_gain_beside_fedavg() -> None:
    """Digits with an imbalance of 10 over five unlike clients: the defaults of both parts."""
    tables = {"rounds": 6, "model": {"use": "cnn", "width": 8, "dense": 32}}
    own = simulate(tiny(strategy={"use": "longtail"}, loss=ADJUSTED, **tables)).scores
    other = simulate(tiny(strategy={"use": "fedavg"}, **tables)).scores
    assert own["tail"] > other["tail"]
    assert own["balanced_accuracy"] > other["balanced_accuracy"]


def test_clients_of_few_classes_and_a_class_of_nobody_stay_finite() -> None:
    config = tiny(
        strategy={"use": "longtail"},
        loss=ADJUSTED,
        partition={"use": "shards", "clients": 5, "classes_per_client": 2},
    )
    result = simulate(config)
    assert all(torch.isfinite(tensor).all() for tensor in result.state.values())
    assert all(math.isfinite(record["train_loss"]) for record in result.rounds)


def test_an_expanded_head_is_refused_before_the_start() -> None:
    model = {"use": "cnn", "width": 4, "dense": 8, "train": "head", "expand": {"use": "random-relu"}}
    with pytest.raises(ConfigError, match=r"averages a linear head .* set strategy.share = 0"):
        simulate(tiny(strategy={"use": "longtail"}, model=model))


@pytest.mark.parametrize("evaluation", [{"patience": 1}, {"keep": "best"}])
@pytest.mark.parametrize(
    ("strategy", "otherwise"),
    [
        ({"use": "longtail"}, {"use": "longtail", "share": 0.0}),
        ({"use": "ccvr"}, {"use": "ccvr", "every": 1, "steps": 5}),
    ],
)
def test_a_run_that_may_end_before_its_last_round_is_refused(
    strategy: dict[str, Any], otherwise: dict[str, Any], evaluation: dict[str, Any]
) -> None:
    ends = {"evaluation": {"holdout": 0.2, **evaluation}}
    with pytest.raises(
        ConfigError, match=r"into the last round's model alone; leave out evaluation\.patience"
    ):
        simulate(tiny(strategy=strategy, **ends))
    simulate(tiny(strategy=otherwise, rounds=1, **ends))


@pytest.mark.parametrize("keys", [{"share": 1.5}, {"share": -0.1}, {"momentum": 1.0}])
def test_values_out_of_range_are_refused(keys: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        LongTail(**keys)
