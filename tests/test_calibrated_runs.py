"""Temperature from what clients keep out of training: the same on every engine, kept with the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedvision.api import RunResult, simulate
from fedvision.config import ExperimentConfig
from fedvision.data.shards import Shard
from fedvision.data.sources.arrays import digits
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.trained_model import load
from fedvision.training.likelihoods import OCTAVES, PER_OCTAVE, best_factor, query
from tests.experiments import FEDPER, digits_of_several_labels, several_labels, tiny

HELD: dict[str, Any] = {"holdout": 0.3, "calibrate": True}
MIDDLE = OCTAVES * PER_OCTAVE


def calibrated(**tables: Any) -> ExperimentConfig:
    return tiny(**{"evaluation": HELD} | tables)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    return folder, simulate(calibrated(), out=folder)


def held_out_loss(folder: Path, scale: float) -> float:
    """Return the mean cross-entropy of softmax(s z) on all that the clients of ``calibrated`` keep."""
    built, model = Experiment.build(calibrated()), load(folder)
    train = built.dataset.train
    total, images = 0.0, 0
    for client in range(len(built.split.clients)):
        shard = Shard(images=train.images, labels=train.labels, indices=built.split.test(client))
        x, labels = model.settings.batch(shard, np.arange(len(shard)))
        with torch.no_grad():
            total += float(F.cross_entropy(scale * model.network(x), labels, reduction="sum"))
        images += len(shard)
    return total / images


def test_the_scale_is_the_most_likely_one(run: tuple[Path, RunResult]) -> None:
    folder, result = run
    found = result.rounds[-1]["calibration"]
    scale = load(folder).description.probability_scale
    assert scale == pytest.approx(found["factor"])
    assert abs(np.log2(scale)) > 0.05  # else nothing would be shown
    assert found["loss"] == pytest.approx(held_out_loss(folder, 1.0), rel=1e-5)
    best = held_out_loss(folder, scale)
    assert found["scaled_loss"] >= best - 1e-6
    assert best < min(held_out_loss(folder, scale * factor) for factor in (0.9, 1.1, 1 / scale))
    assert "calibration" not in result.rounds[0]


@pytest.mark.slow
def test_predictions_stay_and_probabilities_change(run: tuple[Path, RunResult], tmp_path: Path) -> None:
    folder, result = run
    plain = simulate(calibrated(evaluation={"holdout": 0.3}), out=tmp_path / "plain")
    assert all(torch.equal(plain.state[name], tensor) for name, tensor in result.state.items())
    assert plain.rounds[-1]["server"] == result.rounds[-1]["server"]
    test = digits().test
    assert test is not None
    before, after = (load(place).predict(test.images) for place in (tmp_path / "plain", folder))
    assert np.array_equal(before.labels, after.labels)
    scale = load(folder).description.probability_scale
    logits = scale * np.log(before.probabilities.astype(np.float64))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(after.probabilities, expected, atol=1e-5)
    summary = json.loads((folder / "summary.json").read_text())
    sure = sum(summary["calibration"]["reliability"]["confidence"])
    assert sure == pytest.approx(after.probabilities.max(1).sum(), rel=1e-5)
    assert "Its probabilities are those of logits times" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_ray_finds_the_same(run: tuple[Path, RunResult], tmp_path: Path) -> None:
    found = simulate(calibrated(), engine="ray", out=tmp_path / "ray")
    assert found.rounds[-1]["calibration"] == run[1].rounds[-1]["calibration"]


@pytest.mark.slow
def test_several_labels_are_calibrated(tmp_path: Path) -> None:
    tables = several_labels(digits_of_several_labels(tmp_path))
    found = simulate(calibrated(**tables), out=tmp_path / "run").rounds[-1]["calibration"]
    assert found["scaled_loss"] <= found["loss"]
    assert load(tmp_path / "run").description.probability_scale == pytest.approx(found["factor"])


@pytest.mark.slow
def test_a_head_in_closed_form_gets_probabilities(tmp_path: Path) -> None:
    """The outputs of ridge are near 0 and 1, so softmax of them as they are is never sure."""
    tables: dict[str, Any] = {
        "rounds": 1,
        "model": {"use": "cnn", "width": 4, "dense": 64, "frozen": ["backbone.*"]},
        "strategy": {"use": "closed-form"},
    }
    found = simulate(calibrated(**tables), out=tmp_path / "run").rounds[-1]["calibration"]
    assert found["factor"] > 3
    assert found["scaled_loss"] < found["loss"] - 0.3


def test_a_factor_by_hand() -> None:
    """A parabola in log2 s whose least value lies a quarter of a step above two steps."""
    places = np.arange(2 * MIDDLE + 1) - MIDDLE
    losses = 10 * ((places - 2.25) ** 2 + 7)
    found = best_factor({"loss": losses, "images": np.array([10])})
    assert found["factor"] == pytest.approx(2 ** (2.25 / PER_OCTAVE))
    assert found["loss"] == pytest.approx(2.25**2 + 7)
    assert found["scaled_loss"] == pytest.approx(0.25**2 + 7)
    scale = query(3.0).tensors["scale"]
    assert float(scale[MIDDLE]) == 3
    assert float(scale[MIDDLE + PER_OCTAVE]) == pytest.approx(6)


def test_where_nothing_is_known_nothing_changes() -> None:
    flat = best_factor({"loss": np.full(2 * MIDDLE + 1, 5.0), "images": np.array([2])})
    assert flat["factor"] == 1
    assert best_factor({}) == {"images": 0}
    assert best_factor({"loss": np.full(2 * MIDDLE + 1, np.nan), "images": np.array([2])}) == {"images": 2}


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.calibrate needs evaluation\.holdout > 0"):
        calibrated(evaluation={"calibrate": True})
    with pytest.raises(ConfigError, match=r"evaluation\.calibrate is for one model, and model\.personal"):
        Experiment.build(calibrated(**FEDPER))
