"""Runs on annotated folders: natural clients by a column, engines that agree, an experiment inspected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedvision import simulate
from fedvision.config import ExperimentConfig
from fedvision.errors import DataError, RunFolderError
from fedvision.experiment import Experiment
from fedvision.reporting.inspect_experiment import inspect_experiment
from tests.data.annotated import box, document, image
from tests.experiments import tiny


@pytest.fixture
def annotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty images by four cameras; a bright square is a cat, a dark one a dog, some show nothing."""
    monkeypatch.setenv("FEDVISION_CACHE", str(tmp_path / "cache"))
    rng, images, annotations = np.random.default_rng(0), [], list[dict[str, Any]]()
    for number in range(1, 41):
        pixels = rng.integers(90, 110, (12, 16), np.uint8)
        if number % 5:
            left, top, cat = int(rng.integers(0, 10)), int(rng.integers(0, 6)), number % 3 == 0
            pixels[top : top + 6, left : left + 6] = 250 if cat else 5
            annotations.append(box(number, number, [left, top, 6, 6], 7 if cat else 2))
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images.append(image(number, width=16, height=12, camera=f"c{number % 4}"))
    (tmp_path / "boxes.json").write_text(json.dumps(document(images, annotations)))
    return tmp_path / "boxes.json"


def presence(path: Path, **tables: Any) -> ExperimentConfig:
    base: dict[str, Any] = {
        "task": {"use": "tests.tasks.box_presence:Presence"},
        "data": {
            "use": "coco",
            "path": str(path),
            "size": 16,
            "channels": 1,
            "workers": 1,
            "validation": 0.2,
        },
        "partition": {"use": "column", "clients": 4, "name": "camera"},
        "loss": {"use": "binary-cross-entropy"},
        "training": {"batch_size": 4, "lr": 0.1},
        "rounds": 2,
    }
    return tiny(**base | tables)


@pytest.mark.slow
def test_boxes_reach_clients_and_measurements(annotated: Path, tmp_path: Path) -> None:
    result = simulate(presence(annotated, rounds=12), engine="serial", out=tmp_path / "run")
    first, last = (result.rounds[place]["server"] for place in (0, -1))
    assert last["loss"] < first["loss"]
    assert last["images"] == 8


@pytest.mark.slow
def test_a_stack_gives_the_same(annotated: Path, tmp_path: Path) -> None:
    serial = simulate(presence(annotated), engine="serial", out=tmp_path / "serial")
    stacked = simulate(presence(annotated), engine="vectorized", out=tmp_path / "stacked")
    assert all(torch.equal(tensor, stacked.state[name]) for name, tensor in serial.state.items())


@pytest.mark.long
def test_ray_has_the_same_bits(annotated: Path, tmp_path: Path) -> None:
    serial = simulate(presence(annotated), engine="serial", out=tmp_path / "serial")
    found = simulate(presence(annotated), engine="ray", out=tmp_path / "ray")
    assert all(torch.equal(tensor, found.state[name]) for name, tensor in serial.state.items())


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits_and_only_with_the_same_boxes(
    annotated: Path, tmp_path: Path
) -> None:
    whole = simulate(presence(annotated, rounds=3), engine="serial", out=tmp_path / "whole")
    simulate(presence(annotated, rounds=2), engine="serial", out=tmp_path / "parts")
    parts = simulate(presence(annotated, rounds=3), engine="serial", out=tmp_path / "parts", resume=True)
    assert all(torch.equal(tensor, parts.state[name]) for name, tensor in whole.state.items())
    content = json.loads(annotated.read_text())
    content["annotations"][0]["bbox"][2] += 1
    annotated.write_text(json.dumps(content))
    with pytest.raises(RunFolderError, match="labels"):
        simulate(presence(annotated, rounds=4), engine="serial", out=tmp_path / "parts", resume=True)


def test_an_experiment_on_boxes_is_inspected(annotated: Path) -> None:
    text = inspect_experiment(Experiment.build(presence(annotated)))
    assert "boxes in 32 images: 1 an image (median), 1 at most" in text
    assert "the smallest box has 6.0 x 6.0 pixels after decoding, 6 x 6 in its file" in text


def test_another_task_is_refused(annotated: Path) -> None:
    with pytest.raises(DataError, match=r"needs one class an image, .* has targets float64 \[N, 2, 7\]"):
        Experiment.build(presence(annotated, task={"use": "classification"}, loss={"use": "cross-entropy"}))
