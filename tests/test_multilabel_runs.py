"""Runs with several labels an image: engines and resumed runs agree, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvision import simulate
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.reporting.inspect_experiment import inspect_experiment
from fedvision.reporting.render import run_table
from fedvision.runs.folder import RunFolder
from fedvision.types import State
from tests.experiments import tiny


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """Digits whose labels are: even, above 4, nine; the last one is rare."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels, digit = (found.images * 15).astype(np.uint8), found.target
    labels = np.stack([digit % 2 == 0, digit > 4, digit == 9], axis=1).astype(np.uint8)
    arrays = {}
    for part, rows in (("train", slice(0, 500)), ("test", slice(500, 700))):
        arrays |= {f"{part}_images": pixels[rows], f"{part}_labels": labels[rows]}
    np.savez(tmp_path / "digits.npz", **arrays)
    return str(tmp_path / "digits.npz")


def several(archive: str, **tables: Any) -> ExperimentConfig:
    base: dict[str, Any] = {
        "task": {"use": "multi-label"},
        "data": {"use": "npz", "path": archive, "classes": ["even", "high", "nine"]},
        "partition": {"use": "dirichlet", "clients": 4, "alpha": 0.5},
        "loss": {"use": "class-balanced"},
        "evaluation": {"holdout": 0.2},
        "rounds": 2,
    }
    return tiny(**base | tables)


def same(one: State, other: State) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_learns_and_prints_its_scores(archive: str, tmp_path: Path) -> None:
    result = simulate(
        several(archive, rounds=8, training={"batch_size": 16, "lr": 0.5}), out=tmp_path / "run"
    )
    first, last = (result.rounds[i]["server"] for i in (0, -1))
    assert last["scores"]["mean_ap"] > first["scores"]["mean_ap"] + 0.1
    assert last["loss"] < first["loss"]
    assert last["images"] == 200
    assert sum(last["labels"]["positives"]) > 200
    local = result.rounds[-1]["local"]
    assert local["spread"]["clients"] == len(local["mean_ap"]) == 4
    text = run_table(RunFolder(tmp_path / "run"))
    assert "mean AP" in text
    assert "AP" in next(line for line in text.splitlines() if line.startswith("rarest classes"))
    page = (tmp_path / "run/report.html").read_text()
    assert "AUROC</th>" in page
    assert "the mean average precision over labels is" in page
    assert "Nothing was measured" not in page
    assert "training images of 3" not in page


def test_engines_agree(archive: str, tmp_path: Path) -> None:
    serial, stacked = (
        simulate(several(archive), engine=engine, out=tmp_path / engine)
        for engine in ("serial", "vectorized")
    )
    for name, tensor in serial.state.items():
        assert torch.allclose(tensor, stacked.state[name], atol=1e-5)
    assert (
        serial.rounds[-1]["local"]["labels"]["positives"]
        == stacked.rounds[-1]["local"]["labels"]["positives"]
    )


def test_a_resumed_run_has_the_same_bits(archive: str, tmp_path: Path) -> None:
    whole = simulate(several(archive, rounds=3), out=tmp_path / "whole")
    simulate(several(archive, rounds=1), out=tmp_path / "parts")
    parts = simulate(several(archive, rounds=3), out=tmp_path / "parts", resume=True)
    assert same(whole.state, parts.state)
    assert whole.rounds == parts.rounds


def test_mixup_blends_the_losses_of_two_images(archive: str, tmp_path: Path) -> None:
    result = simulate(several(archive, transforms={"mixup": 0.4}), out=tmp_path / "run")
    assert np.isfinite(result.rounds[-1]["server"]["loss"])


@pytest.mark.parametrize("prior", ["local", "global"])
def test_it_can_be_inspected(archive: str, prior: str) -> None:
    text = inspect_experiment(
        Experiment.build(several(archive, loss={"use": "class-balanced", "prior": prior}))
    )
    assert "nine" in text


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"loss": {"use": "focal"}}, r"'focal' is for classification, not for .*asymmetric"),
        ({"task": {"use": "classification"}}, "needs one class an image, and .* has any number of labels"),
        ({"data": {"use": "digits"}}, r"needs any number of labels an image \(npz.* has one class an image"),
        ({"evaluation": {"metrics": ["kappa"]}}, "'kappa' is for classification"),
    ],
)
def test_what_is_for_another_task_is_refused(archive: str, tables: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Experiment.build(several(archive, **tables))


def test_machines_far_apart_are_refused(archive: str) -> None:
    with pytest.raises(ConfigError, match="runs in simulations only"):
        Experiment.build(several(archive), split_here=False)
