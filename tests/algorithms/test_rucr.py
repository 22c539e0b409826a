"""RUCR: prototypes and contrast by hand, mixtures, heads that are averaged, and FedAvg without either."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedvision import simulate
from fedvision.algorithms.base import ServerContext
from fedvision.algorithms.rucr import RUCR, class_prototypes, mix, prototype_contrast, rectified_head
from fedvision.config import TransformConfig
from fedvision.data.shards import Shard
from fedvision.data.transforms import prepare
from fedvision.errors import ConfigError, RunError
from fedvision.models.base import ImageModel
from fedvision.models.meta import model_with
from fedvision.tasks.classification import Classification
from fedvision.training.forward import ForwardSettings
from fedvision.training.statistics import LocalData
from fedvision.types import State
from tests.experiments import tiny

CLASSES, SIDE = 3, 2
QUICK: dict[str, Any] = {"samples": 5, "steps": 10, "batch_size": 16}
HEAD: dict[str, Any] = {"samples": 20, "steps": 50, "lr": 0.5, "batch_size": 16, "low": 0.5, "high": 0.9}


def _data(labels: list[int], seed: int = 0) -> LocalData:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), SIDE, SIDE, 1), np.uint8)
    shard = Shard(images=images, labels=np.array(labels), indices=np.arange(len(labels)))
    transform = prepare(TransformConfig(), 1)
    whole = ForwardSettings(task=Classification(), transform=transform, device=torch.device("cpu"))
    data = LocalData(shard=shard, settings=whole, num_classes=CLASSES, batch_size=2)
    return replace(data, model=_model())


def _model() -> ImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return ImageModel(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES)).eval()


def test_sums_give_the_mean_of_features_and_of_directions() -> None:
    """Two clients: the mean over all images, and the mean of the clients' directions by images."""
    parts = [_data([0, 0, 2, 0]), _data([2, 0, 2], seed=1)]
    found = [class_prototypes(model=part.model, data=part) for part in parts]  # type: ignore[arg-type]
    total = {name: found[0][name] + found[1][name] for name in found[0]}
    assert total["count"].tolist() == [4, 0, 3]
    rows = [torch.cat([x.flatten(1) for x, _ in part.batches()]).double() for part in parts]
    labels = [torch.from_numpy(part.shard.labels) for part in parts]
    own = torch.cat([row[label == 0] for row, label in zip(rows, labels, strict=True)])
    torch.testing.assert_close(total["sum"][0] / 4, own.mean(0))
    ways = [F.normalize(row[label == 0].mean(0), dim=0) for row, label in zip(rows, labels, strict=True)]
    torch.testing.assert_close(total["unit"][0] / 4, (3 * ways[0] + ways[1]) / 4)
    assert not total["sum"][1].any()
    assert not total["unit"][1].any()


def test_the_contrast_by_hand() -> None:
    """Features along the own prototype: s = (1, 0) / 0.5; shares 3/4 and 1/4; CE(s + e_y log pi_y, y)."""
    prototypes, counts = torch.tensor([[5.0, 0.0], [0.0, 2.0]]), torch.tensor([3.0, 1.0])
    features, labels = torch.tensor([[7.0, 0.0], [0.0, 0.1]]), torch.tensor([0, 1])
    here = torch.tensor([True, True])
    found = prototype_contrast(features, labels, prototypes, counts, here, 0.5)
    wanted = [math.log(1 + math.exp(0 - (2 + math.log(share)))) for share in (0.75, 0.25)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    # The client lacks class 1: its similarity counts as 0, which it is here for the first image alone.
    lacking = prototype_contrast(
        features[:1], labels[:1], prototypes, counts, torch.tensor([True, False]), 0.5
    )
    assert lacking.item() == pytest.approx(wanted[0], rel=1e-5)
    near = prototype_contrast(
        torch.tensor([[1.0, 1.0]]), labels[:1], prototypes, counts, torch.tensor([True, False]), 0.5
    )
    similar = 2 / math.sqrt(2) + math.log(0.75)
    assert near.item() == pytest.approx(math.log(1 + math.exp(-similar)), rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 3), min_size=3, max_size=3), st.lists(st.integers(0, 2), min_size=1, max_size=5)
)
def test_classes_without_a_prototype_leave_all_finite(counts: list[int], labels: list[int]) -> None:
    features = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    prototypes = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    prototypes[torch.tensor(counts) == 0] = 0.0
    here = torch.zeros(3, dtype=torch.bool)
    here[labels] = True
    known = torch.tensor(counts, dtype=torch.float64)
    found = prototype_contrast(features, torch.tensor(labels), prototypes, known, here, 0.9)
    (gradient,) = torch.autograd.grad(found.sum(), features)
    assert bool(torch.isfinite(found).all() and torch.isfinite(gradient).all())
    assert all(found[k] == 0 for k, label in enumerate(labels) if counts[label] == 0)


def test_mixtures_lie_between_a_prototype_and_a_features_direction() -> None:
    features = torch.tensor([[3.0, 0.0]])
    prototypes = {
        "unit": torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.5]]),
        "count": torch.tensor([4, 0, 1]),
    }
    found, labels = mix(features, prototypes, 50, (0.4, 0.8), torch.Generator().manual_seed(0))
    assert labels.tolist() == [0] * 50 + [2] * 50
    part = found[:50, 1]
    assert bool(((part >= 0.4) & (part <= 0.8)).all())
    torch.testing.assert_close(found[:50, 0], 1 - part)
    torch.testing.assert_close(found[50:, 0], 1 - 2 * found[50:, 1])


def _unit() -> State:
    return {"unit": torch.eye(CLASSES, SIDE * SIDE), "count": torch.ones(CLASSES, dtype=torch.float64)}


def test_a_head_that_is_trained_on_mixtures_knows_the_prototypes() -> None:
    data = _data([0, 0, 0, 1])
    args = HEAD | {"steps": 300}
    head = rectified_head(model=data.model, data=data, tensors=_unit(), seed=1, **args)  # type: ignore[arg-type]
    assert head["images"] == 4
    logits = _unit()["unit"].double() @ (head["weight"] / 4).T + head["bias"] / 4
    assert logits.argmax(1).tolist() == [0, 1, 2]
    own = _model().head
    assert torch.equal(data.model.head.weight, own.weight), "the model itself was changed"  # type: ignore[union-attr]


def _answer(sums: State) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in sums.items()}


def _context(answers: tuple[Any, ...], round: int = 2) -> ServerContext:
    return ServerContext(
        round=round,
        rounds=2,
        answers=answers,
        class_counts=None,
        make_model=lambda state: model_with(_model(), state),
        generator=torch.Generator().manual_seed(5),
    )


def test_heads_are_averaged_by_images_and_prototypes_kept() -> None:
    own, state = RUCR(), dict(_model().state_dict())
    first = _answer(class_prototypes(model=_model(), data=_data([0, 2])))
    assert own.refine(state, _context((first,), round=1)) is state
    assert own.prototypes["count"].tolist() == [1, 0, 1]
    assert own.configure(2, state, 0).tensors == {"prototypes": own.prototypes}
    total = {"images": np.int64(4), "weight": np.full((3, 4), 8.0), "bias": np.full(3, -4.0)}
    new = own.refine(state, _context((first, {name: np.asarray(one) for name, one in total.items()})))
    assert bool((new["head.weight"] == 2).all())
    assert bool((new["head.bias"] == -1).all())
    with pytest.raises(RunError, match=r"'head\.weight' stays on the clients"):
        own.refine({}, _context((first, {name: np.asarray(one) for name, one in total.items()})))


def test_queries() -> None:
    count = {"count": np.ones(2), "unit": np.ones((2, 2))}
    assert [round for round in (1, 2, 3) if RUCR().query(round, 3, ())] == [1, 2, 3]
    assert [round for round in (1, 2, 3) if RUCR(weight=0.0).query(round, 3, ())] == [3]
    assert [round for round in (1, 2, 3) if RUCR(steps=0).query(round, 3, ())] == [1, 2]
    assert RUCR().query(1, 3, (count,)) is None
    second = RUCR().query(3, 3, (count,))
    assert second is not None
    assert second.use == "rectified-head"
    assert RUCR().query(3, 3, (count, {})) is None
    assert RUCR().query(3, 3, ({"count": np.zeros(2)},)) is None, "nobody has anything to mix"


@pytest.mark.slow
def test_without_both_parts_it_is_fedavg_to_the_bit(tmp_path: Path) -> None:
    plain = simulate(tiny(rounds=2), out=tmp_path / "fedavg")
    off = simulate(tiny(rounds=2, strategy={"use": "rucr", "weight": 0.0, "steps": 0}), out=tmp_path / "off")
    head = simulate(tiny(rounds=2, strategy={"use": "rucr", "weight": 0.0, **QUICK}), out=tmp_path / "head")
    both = simulate(tiny(rounds=2, strategy={"use": "rucr", **QUICK}), out=tmp_path / "both")
    for name, tensor in plain.state.items():
        assert torch.equal(tensor, off.state[name])
        assert torch.equal(tensor, head.state[name]) == (not name.startswith("head."))
        assert not torch.equal(tensor, both.state[name])
    assert both.rounds[1]["statistics"]["rectified-head"]["clients"] == list(range(5))


def test_what_does_not_fit_is_refused() -> None:
    deep = ImageModel(nn.Flatten(), nn.Sequential(nn.Linear(SIDE * SIDE, CLASSES)))
    with pytest.raises(
        ConfigError, match="this network's is a Sequential; use a network with such a head, or"
    ):
        class_prototypes(model=deep, data=_data([0]))
    with pytest.raises(ConfigError, match=r"leave out evaluation\.patience"):
        RUCR().check(tiny(evaluation={"holdout": 0.2, "patience": 1}), ["a"], (8, 8, 1))
    RUCR(steps=0).check(tiny(evaluation={"holdout": 0.2, "patience": 1}), ["a"], (8, 8, 1))
    with pytest.raises(ValueError, match=r"low must be <= high = 0\.2, not 0\.3"):
        RUCR(low=0.3, high=0.2)
