"""The simplex ETF by its definition, its sparse form, and the head on it, the frame of which stays."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from fedvision import seeding, simulate
from fedvision.config import ModelConfig
from fedvision.errors import PluginError
from fedvision.experiment import Experiment
from fedvision.models.build import build_model
from fedvision.models.etf import EtfHead, simplex_etf
from fedvision.tasks.classification import Classification
from fedvision.trained_model import load
from fedvision.types import PluginSpec
from tests.experiments import tiny

MODEL = {"use": "cnn", "width": 4, "dense": 16}


@given(st.integers(2, 12), st.integers(0, 20), st.integers(0, 5))
def test_any_two_rows_have_the_cosine_of_a_simplex(classes: int, more: int, seed: int) -> None:
    rows = simplex_etf(classes, classes + more, sparse=0.0, seed=seed)
    expected = torch.full((classes, classes), -1 / (classes - 1)).fill_diagonal_(1.0)
    # Each number has 16 bits.
    torch.testing.assert_close(rows @ rows.T, expected, rtol=0, atol=1e-4)


def test_two_classes_are_opposite() -> None:
    rows = simplex_etf(2, 2, sparse=0.0, seed=1)
    torch.testing.assert_close(rows[0], -rows[1])


def test_directions_are_orthogonalised_one_after_the_other() -> None:
    """By Gram and Schmidt, whose vectors have no free sign: rows are (u - v) / sqrt(2) and the reverse."""
    drawn = torch.randn(3, 2, generator=seeding.torch_stream(4, "etf"), dtype=torch.float64)
    u = drawn[:, 0] / drawn[:, 0].norm()
    v = drawn[:, 1] - (drawn[:, 1] @ u) * u
    row = (u - v / v.norm()) / math.sqrt(2)
    expected = torch.stack([row, -row]).float()
    torch.testing.assert_close(simplex_etf(2, 3, sparse=0.0, seed=4), expected, rtol=0, atol=1e-4)


def test_a_network_is_built_with_the_experiments_seed() -> None:
    """On a client's machine, too, to which no seed of the head was written."""
    args = {"num_classes": 3, "in_channels": 1, "image_size": (8, 8), "seed": 7}
    for spec, seed in ((PluginSpec(use="etf"), 7), (PluginSpec(use="etf", args={"seed": 2}), 2)):
        config = ModelConfig(use="cnn", head=spec, args={"width": 4, "dense": 8})
        model = build_model(config, task=Classification(), **args)
        assert torch.equal(model.head.etf, simplex_etf(3, 8, sparse=0.0, seed=seed))


def test_the_seed_settles_it() -> None:
    one, again, other = (simplex_etf(5, 8, sparse=0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@given(st.integers(2, 8), st.integers(0, 8), st.floats(0, 0.999), st.integers(0, 3))
def test_a_sparse_frame_has_its_zeros_and_no_row_of_zeros(
    classes: int, more: int, sparse: float, seed: int
) -> None:
    size = classes + more
    rows = simplex_etf(classes, size, sparse=sparse, seed=seed)
    wanted = min(int(sparse * classes * size), classes * size - classes)
    drawn = simplex_etf(classes, size, sparse=0.0, seed=seed)
    assert int((rows == 0).sum()) >= wanted
    assert int((rows == 0).sum()) <= wanted + int((drawn == 0).sum())
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(classes), rtol=0, atol=1e-4)


def test_logits_are_beta_times_cosines_of_projected_features() -> None:
    head = EtfHead(in_features=3, num_classes=4, scale=5.0, seed=2)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    directions = x @ head.project.weight.T + head.project.bias
    assert directions.shape == (6, 4)
    expected = 5.0 * F.normalize(directions, dim=1) @ simplex_etf(4, 4, sparse=0.0, seed=2).T
    torch.testing.assert_close(head(x), expected)
    assert float(head(x).detach().abs().max()) <= 5.0 * 1.001


def test_features_of_zero_stay_finite() -> None:
    head = EtfHead(in_features=4, num_classes=3, project=False)
    x = torch.zeros(2, 4, requires_grad=True)
    head(x).sum().backward()
    assert torch.isfinite(head(x)).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.slow
def test_all_but_the_frame_is_trained_and_sent(tmp_path: Path) -> None:
    config = tiny(rounds=2, model={**MODEL, "head": "etf"}, loss={"use": "balanced-softmax"})
    result = simulate(config, out=tmp_path / "run")
    assert {name for name in result.state if name.startswith("head")} == {
        "head.log_scale",
        "head.project.weight",
        "head.project.bias",
    }
    assert not torch.equal(result.state["head.log_scale"], torch.tensor(math.log(10.0)))
    assert "head.etf" not in load_file(tmp_path / "run/model.safetensors")
    # The experiment's seed is in model.json, so the file's network has the same frame.
    found = load(tmp_path / "run").evaluate(Experiment.build(config).dataset)
    assert found.scores["accuracy"] == pytest.approx(result.scores["accuracy"])


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        ({"use": "etf", "size": 9}, "a simplex ETF of 10 classes needs .* not 9"),
        ({"use": "etf", "size": 12, "project": False}, "set project = true"),
        ({"use": "etf", "sparse": 1.0}, "sparse must be >= 0 and < 1"),
    ],
)
def test_what_does_not_fit_is_refused(head: dict[str, object], sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        Experiment.build(tiny(model={**MODEL, "head": head}))
