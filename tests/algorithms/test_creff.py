"""CReFF: gradients by hand and against autograd, features that learn them, and a head that is mended."""

from __future__ import annotations

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
from fedvision.algorithms.creff import CReFF, class_gradients, gradient_distance, head_gradients
from fedvision.algorithms.snapshot import restore, snapshot
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
QUICK: dict[str, Any] = {"samples": 5, "match_steps": 5, "steps": 20, "batch_size": 16}


def _data(labels: list[int], seed: int = 0) -> LocalData:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), SIDE, SIDE, 1), np.uint8)
    shard = Shard(images=images, labels=np.array(labels), indices=np.arange(len(labels)))
    transform = prepare(TransformConfig(), 1)
    whole = ForwardSettings(task=Classification(), transform=transform, device=torch.device("cpu"))
    return LocalData(shard=shard, settings=whole, num_classes=CLASSES, batch_size=2)


def _model(bias: bool = True) -> ImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return ImageModel(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES, bias=bias)).eval()


def _gradients(model: nn.Module, data: LocalData, tensors: State | None = None) -> State:
    return head_gradients(model=model, data=replace(data, model=model), tensors=tensors or {})


def test_a_gradient_by_hand() -> None:
    """W = 0 makes softmax 1/2 each: dW is -z / 2 for the own class and z / 2 for the other."""
    features = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    weight, bias = class_gradients(features, torch.tensor([0, 1]), torch.zeros(2, 2), torch.zeros(2))
    assert weight.tolist() == [[[-0.5, 0.0], [0.5, 0.0]], [[0.0, 1.0], [0.0, -1.0]]]
    assert bias.tolist() == [[-0.5, 0.5], [0.5, -0.5]]


@pytest.mark.parametrize("bias", [True, False])
def test_a_clients_sums_are_autograds(bias: bool) -> None:
    model, data = _model(bias), _data([0, 0, 2, 0, 2, 2, 2])
    sums = _gradients(model, data)
    assert sums["count"].tolist() == [3, 0, 4]
    x = torch.cat([batch for batch, _ in data.batches()])
    labels = torch.from_numpy(data.shard.labels)
    for label in (0, 2):
        own = labels == label
        loss = F.cross_entropy(model(x[own]), labels[own], reduction="sum")
        found = torch.autograd.grad(loss, list(model.head.parameters()))
        torch.testing.assert_close(sums["weight"][label].float(), found[0], rtol=1e-4, atol=1e-5)
        if bias:
            torch.testing.assert_close(sums["bias"][label].float(), found[1], rtol=1e-4, atol=1e-5)
    assert not sums["weight"][1].any()


def test_gradients_are_taken_at_the_head_that_is_sent() -> None:
    sent = {"weight": torch.zeros(CLASSES, SIDE * SIDE), "bias": torch.zeros(CLASSES)}
    sums = _gradients(_model(), _data([1, 1]), sent)
    third = 2 / 3
    torch.testing.assert_close(sums["bias"][1], torch.tensor([third, third - 2, third], dtype=torch.float64))


def test_the_distance_by_hand() -> None:
    """Equal rows are at 0, opposite ones at 2, right angles at 1; db is one more row."""
    drawn = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]]), torch.tensor([[1.0, 1.0, 1.0]])
    real = torch.tensor([[[5.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[-2.0, -2.0, -2.0]])
    assert gradient_distance(drawn, real).item() == pytest.approx(0 + 2 + 1 + 2, abs=1e-5)
    assert gradient_distance(drawn, (real[0], None)).item() == pytest.approx(3, abs=1e-5)


def _answer(model: nn.Module, labels: list[int]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in _gradients(model, _data(labels)).items()}


def _context(model: nn.Module, labels: list[int], **changes: Any) -> ServerContext:
    context = ServerContext(
        round=2,
        rounds=2,
        answers=(_answer(model, labels),),
        class_counts=None,
        make_model=lambda state: model_with(model, state),
        generator=torch.Generator().manual_seed(5),
    )
    return replace(context, **changes)


def test_features_learn_to_have_the_clients_gradients() -> None:
    model, strategy, distances = _model(), CReFF(samples=4, match_steps=200, match_lr=1.0), []
    for _ in range(3):
        context = _context(model, [0, 1, 2, 1, 0])
        strategy.head = {}
        strategy.refine(dict(model.state_dict()), context)
        distances.append(context.facts["creff"]["distance"])
    assert distances[0] > 0.5
    assert distances[-1] < 0.2 * distances[0]


def test_only_the_last_rounds_model_has_the_new_head() -> None:
    model, strategy = _model(), CReFF(**QUICK)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert strategy.refine(state, _context(model, [0, 1, 2], round=1)) is state
    query = strategy.query(2, 2, ())
    assert query is not None
    assert query.use == "head-gradients"
    assert all(torch.equal(query.tensors[name], strategy.head[name]) for name in ("weight", "bias"))
    last = strategy.refine(state, _context(model, [0, 1, 2]))
    assert torch.equal(last["head.weight"], strategy.head["weight"])
    assert not torch.equal(last["head.weight"], state["head.weight"])
    assert strategy.refine(state, _context(model, [], answers=()))["head.weight"] is not state["head.weight"]
    assert CReFF().refine(state, _context(model, [], answers=())) is state


def test_gradients_are_queried_at_an_interval_and_after_the_last_round() -> None:
    assert [round for round in range(1, 8) if CReFF().query(round, 7, ())] == list(range(1, 8))
    assert [round for round in range(1, 8) if CReFF(every=3).query(round, 7, ())] == [3, 6, 7]
    assert CReFF().query(7, 7, ({"count": np.ones(2)},)) is None


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, CLASSES - 1), max_size=6))
def test_classes_without_images_leave_all_finite(labels: list[int]) -> None:
    model, strategy = _model(), CReFF(**QUICK)
    state = dict(model.state_dict())
    answer = _answer(model, labels) if labels else _answer(model, [0])
    if not labels:
        answer = {name: np.zeros_like(array) for name, array in answer.items()}
    new = strategy.refine(state, _context(model, labels, answers=(answer,)))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in new.values())
    assert (new is state) == (not labels)
    if labels:
        assert strategy.features["seen"].nonzero().flatten().tolist() == sorted(set(labels))


def test_what_it_has_learned_is_in_a_checkpoint() -> None:
    model, strategy, other = _model(), CReFF(**QUICK), CReFF(**QUICK)
    strategy.refine(dict(model.state_dict()), _context(model, [0, 1], round=1))
    restore(other, *snapshot(strategy))
    assert torch.equal(other.features["features"], strategy.features["features"])
    assert torch.equal(other.head["weight"], strategy.head["weight"])


def test_rounds_are_fedavgs_until_the_last_ones_head(tmp_path: Path) -> None:
    plain = simulate(tiny(rounds=2), out=tmp_path / "fedavg")
    found = simulate(tiny(rounds=2, strategy={"use": "creff", **QUICK}), out=tmp_path / "creff")
    for name, tensor in plain.state.items():
        assert torch.equal(tensor, found.state[name]) == (not name.startswith("head."))
    assert found.rounds[0]["server"] == plain.rounds[0]["server"]
    assert found.rounds[1]["statistics"]["head-gradients"]["clients"] == list(range(5))


def test_what_does_not_fit_is_refused_before_the_run(tmp_path: Path) -> None:
    for tables, message in (
        ({"evaluation": {"holdout": 0.2, "patience": 1}}, r"leave out evaluation\.patience"),
        ({"model": {"use": "cnn", "width": 4, "dense": 8, "personal": ["head.*"]}}, "stays on the clients"),
    ):
        with pytest.raises((ConfigError, RunError), match=message):
            simulate(tiny(strategy={"use": "creff", **QUICK}, **tables), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_other_heads_and_several_labels_are_refused() -> None:
    deep = ImageModel(nn.Flatten(), nn.Sequential(nn.Linear(SIDE * SIDE, CLASSES)))
    with pytest.raises(
        ConfigError, match="this network's is a Sequential; use a network with such a head, or"
    ):
        _gradients(deep, _data([0]))
    several = _data([0, 1])
    several = replace(several, shard=replace(several.shard, labels=np.eye(2, CLASSES, dtype=np.uint8)))
    with pytest.raises(ConfigError, match="needs one label an image"):
        _gradients(_model(), several)
    wide = ImageModel(nn.Flatten(), nn.Linear(4_000_000, CLASSES))
    with pytest.raises(ConfigError, match="use a network with fewer features"):
        _gradients(wide, _data([0, 1]))


@pytest.mark.parametrize(
    ("args", "message"),
    [({"samples": 0}, "samples must be >= 1"), ({"match_lr": 0.0}, "match_lr must be > 0")],
)
def test_arguments_out_of_range(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CReFF(**args)
