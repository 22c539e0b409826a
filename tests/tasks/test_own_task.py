"""A task of another form than [B, C] trains, is measured and is refused where it must be, as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvision import simulate
from fedvision.config import ExperimentConfig, TransformConfig
from fedvision.data.transforms import prepare
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.reporting.inspect_experiment import inspect_experiment
from fedvision.reporting.render import run_table
from fedvision.runs.folder import RunFolder
from fedvision.tasks.stats import MetricStats
from fedvision.trained_model import load
from tests.experiments import tiny
from tests.tasks import pixel_task
from tests.tasks.pixel_task import CLASSES, SIDE, Pixels

HERE = "tests.tasks.pixel_task"


def pixels(**tables: Any) -> ExperimentConfig:
    base: dict[str, Any] = {
        "task": {"use": f"{HERE}:Pixels"},
        "data": {"use": f"{HERE}:squares"},
        "model": {"use": f"{HERE}:pointwise"},
        "partition": {"use": "dirichlet", "clients": 4, "alpha": 1.0},
        "evaluation": {"holdout": 0.2},
        "training": {"batch_size": 8, "lr": 0.5},
        "rounds": 2,
    }
    return tiny(**base | tables)


@pytest.mark.slow
def test_it_trains_and_is_measured(tmp_path: Path) -> None:
    result = simulate(pixels(rounds=12), engine="serial", out=tmp_path / "run")
    first, last = (result.rounds[place]["server"] for place in (0, -1))
    assert last["loss"] < first["loss"]
    assert last["scores"]["mean_iou"] > first["scores"]["mean_iou"]
    assert last["pixels"] == 20 * SIDE**2
    local = result.rounds[-1]["local"]
    assert len(local["mean_iou"]) == local["spread"]["clients"] == 4
    assert local["pixels"] % SIDE**2 == 0
    # The server's figures are those of its state, counted by hand.
    test = pixel_task.squares().test
    assert test is not None
    x = (torch.from_numpy(test.images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    weight, bias = result.state["weight"][:, 0, 0, 0], result.state["bias"]
    named = (x * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)).argmax(1).numpy()
    table = np.zeros((1, 3, 3), np.int64)
    np.add.at(table[0], (test.labels.ravel(), named.ravel()), 1)
    wanted = np.nanmean(pixel_task.intersection_over_union(MetricStats.from_tables(table)))
    assert last["scores"]["mean_iou"] == pytest.approx(wanted, abs=1e-12)


def test_reports_say_what_was_measured_and_no_more(tmp_path: Path) -> None:
    simulate(pixels(), engine="serial", out=tmp_path / "run")
    text, page = run_table(RunFolder(tmp_path / "run")), (tmp_path / "run/report.html").read_text()
    assert "class counts of 4 clients (columns) in 3 classes" in page
    for told in (text, page):
        assert "recall" not in told.lower()
        assert "mean IoU" in told
        assert "Nothing was measured" not in told
        assert f"{48 * SIDE**2:,} training images" not in told.replace("\N{NARROW NO-BREAK SPACE}", ",")


def test_a_stack_says_that_it_trains_clients_one_by_one_and_gives_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serial = simulate(pixels(), engine="serial", out=tmp_path / "serial")
    stacked = simulate(pixels(), engine="vectorized", out=tmp_path / "stacked")
    assert all(torch.equal(tensor, stacked.state[name]) for name, tensor in serial.state.items())
    notices = RunFolder(tmp_path / "stacked").summary()["notices"]
    assert any("trained one by one: the task 'pixels' has no form for several" in one for one in notices)


def test_classes_of_pixels_move_with_the_image() -> None:
    """Each map equals its image before and after, but for what the rotation blends."""
    transform = prepare(TransformConfig(flip=True, crop=2, cutout=3), 1)
    maps = torch.randint(1, 9, (50, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    drawn = transform.draw(50, (SIDE, SIDE), torch.Generator().manual_seed(1))
    x, moved = Pixels().transform(maps[:, None].float(), maps, drawn, transform)
    assert torch.equal(x[:, 0].long(), moved)
    assert not torch.equal(moved, maps)
    assert moved.dtype == maps.dtype
    elsewhere = transform.apply_to_map(maps, drawn, fill=255)
    assert torch.equal(elsewhere == 255, moved == 0)


def test_a_rotated_map_has_no_new_values() -> None:
    transform = prepare(TransformConfig(rotation=45.0), 1)
    maps = torch.tensor([0, 200])[torch.arange(SIDE) % 2].expand(9, SIDE, SIDE)
    drawn = transform.draw(9, (SIDE, SIDE), torch.Generator().manual_seed(1))
    assert set(transform.apply_to_map(maps, drawn, fill=0).unique().tolist()) == {0, 200}


@pytest.mark.slow
def test_targets_move_with_the_image_in_training(tmp_path: Path) -> None:
    """Where no pixel sees another, a mirrored image with its mirrored classes teaches the same."""
    plain = simulate(pixels(), engine="serial", out=tmp_path / "plain")
    flipped = simulate(pixels(transforms={"flip": True}), engine="serial", out=tmp_path / "flipped")
    for name, tensor in plain.state.items():
        assert torch.allclose(tensor, flipped.state[name], atol=1e-5)


def test_it_can_be_inspected() -> None:
    text = inspect_experiment(Experiment.build(pixels()))
    assert all(name in text for name in CLASSES)
    told = re.match(r"(\d+) training images of 3 classes on 4 clients, with ([\d,]+) pixels in all", text)
    assert told is not None
    assert int(told[1]) * SIDE**2 == int(told[2].replace(",", ""))


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"model": {"use": f"{HERE}:whole"}}, r"returns \[2, 3\], not \[2, 3, 8, 8\] logits for 2 images"),
        ({"data": {"use": "digits"}}, "needs a class for each pixel.* has one class an image"),
        ({"task": {"use": "classification"}}, r"needs one class an image, .* has targets int64 \[N, 8, 8\]"),
        (
            {"task": {"use": f"{HERE}:Unmoved"}, "transforms": {"crop": 2}},
            "transforms.crop would move images and not their targets.* override transform",
        ),
        ({"task": {"use": f"{HERE}:Scalar"}}, r"'cross-entropy' is \[\], not \[2\]: one number an image"),
        ({"task": {"use": f"{HERE}:Overflowing"}}, "cells of its observe are .*, not 0 to 8"),
        ({"task": {"use": f"{HERE}:RowLess"}}, "its observe returns no rows, and its row_width is 3"),
        ({"task": {"use": f"{HERE}:Unordered"}}, "do not begin with rising numbers of 2 images"),
        ({"task": {"use": f"{HERE}:Narrow"}}, r"torch.int64 \[\d+, 2\], not int64 \[M, 3\]"),
        ({"task": {"use": f"{HERE}:Real"}}, r"cells of its observe are torch.float64 .*, not int64 \[1 n\]"),
        ({"task": {"use": f"{HERE}:Failing"}}, "does not work with .*: ZeroDivisionError: division by zero"),
        ({"task": {"use": f"{HERE}:squares"}}, "is no fedvision.tasks.base.Task"),
        ({"loss": {"use": "asymmetric"}}, "'asymmetric' is for multi-label"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_start(tables: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Experiment.build(pixels(**tables))


def test_its_model_predicts_only_where_it_says_how(tmp_path: Path) -> None:
    simulate(pixels(rounds=1), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="the task 'pixels' does not say what is predicted"):
        load(tmp_path / "run").predict(np.zeros((1, SIDE, SIDE, 1), np.uint8))
