"""Real runs keep what went worst on the server's test images, and show it; nothing is kept without images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision import simulate
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset
from fedvision.detecting import detect
from fedvision.runs import worst_images
from fedvision.runs.folder import RunFolder
from fedvision.tasks import drawings
from fedvision.tasks.detection_misses import FALSE_DRAWN
from fedvision.trained_model import load
from tests import detection_data, segments

FILE = worst_images.FILE
LEARNING = {"batch_size": 4, "lr": 0.1, "momentum": 0.9, "epochs": 8}
FINDING: dict[str, Any] = {
    "partition": {"use": "iid", "clients": 1},
    "training": {
        **{"batch_size": 4, "lr": 0.03, "momentum": 0.9, "clip_norm": 10.0},
        **{"device": "cpu", "epochs": 12},
    },
}
"""With which a detector is sure of some boxes after two rounds, and wrong with some."""


def no_squares() -> Dataset:
    return replace(detection_data.squares(), test=None)


def no_segments() -> Dataset:
    return replace(segments.squares(), test=None)


def bare_ground() -> Dataset:
    """Return images whose test images have nothing but background."""
    found = segments.squares()
    assert found.test is not None
    return replace(found, test=replace(found.test, labels=np.zeros_like(found.test.labels)))


def kept(folder: Path) -> worst_images.WorstImages:
    found = worst_images.read(folder)
    assert found is not None
    return found


def report(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_detectors_misses_are_kept_and_shown(tmp_path: Path) -> None:
    folder, test = tmp_path / "run", detection_data.squares().test
    simulate(detection_data.experiment(**FINDING), engine="serial", out=folder)
    assert test is not None
    found = kept(folder)
    drawn = found.drawings
    totals = np.sum(RunFolder(folder).split()["counts"], axis=0)
    ranks = [(totals[c], c) for c in found.classes.tolist()]
    assert ranks == sorted(ranks)
    assert 0 < len(drawn.panels) <= 12
    # What is shown are test images with all their boxes, and what the saved model finds in them.
    numbers = [
        next(n for n, image in enumerate(test.images) if np.array_equal(image, panel[0]))
        for panel in drawn.panels
    ]
    again = detect(load(folder), test.images)
    assert len(again.boxes)
    for place, number in enumerate(numbers):
        own = drawn.boxes[drawn.boxes[:, drawings.IMAGE] == place]
        annotated = np.isnan(own[:, drawings.SCORE])
        assert annotated.sum() == test.labels[number, 0, 0]
        false = (own[~annotated, drawings.VERDICT] == drawings.WRONG).sum()
        found = (again.images == number).sum()
        assert (~annotated).sum() == found or (false == FALSE_DRAWN and (~annotated).sum() < found)
    page = report(folder)
    assert "Worst images of the rarest classes" in page
    assert page.count("objects missed") + page.count("object missed") >= len(drawn.panels)
    assert not (folder / "mistakes.safetensors").exists()


@pytest.mark.slow
def test_the_worst_masks_are_kept_and_shown(tmp_path: Path) -> None:
    folder, test = tmp_path / "run", segments.squares().test
    task = {"use": "segmentation", "background": 0}
    simulate(segments.segments(task=task, training=LEARNING), engine="serial", out=folder)
    assert test is not None
    found = kept(folder)
    assert set(found.classes.tolist()) <= {1, 2}
    last = RunFolder(folder).rounds()[-1]["server"]["classes"]
    predicted = load(folder).predict(test.images).masks
    for panels, caption, label in zip(
        found.drawings.panels, found.drawings.captions, found.classes.tolist(), strict=True
    ):
        number = next(
            n for n, image in enumerate(test.images) if np.array_equal(image[..., 0], panels[0, ..., 0])
        )
        known = test.labels[number] != 255
        true, named = (one[number] == label for one in (test.labels, predicted))
        dice = 2 * (true & named).sum() / (true.sum() + (named & known).sum())
        assert caption == f"Dice {100 * dice:.1f}%"
    shown = [float(caption.split()[1][:-1]) for caption in found.drawings.captions]
    for label in (1, 2):
        own = [dice for dice, of in zip(shown, found.classes.tolist(), strict=True) if of == label]
        assert own == sorted(own)
        if own and last["dice"][label] < 1:
            assert own[0] <= 100 * last["dice"][label] + 0.05
    assert "Colours of the masks" in report(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(partial(detection_data.experiment, **FINDING), marks=pytest.mark.slow),
        segments.segments,
    ],
    ids=["boxes", "masks"],
)
def test_a_resumed_run_keeps_the_same(make: Any, tmp_path: Path) -> None:
    simulate(make(rounds=2), engine="serial", out=tmp_path / "whole")
    simulate(make(rounds=1), engine="serial", out=tmp_path / "parts")
    (tmp_path / "parts" / FILE).unlink()  # what the first part kept is not what is looked at
    simulate(make(rounds=2), engine="serial", out=tmp_path / "parts", resume=True)
    second = (tmp_path / "parts" / FILE).read_bytes()
    assert second == (tmp_path / "whole" / FILE).read_bytes()
    # A run that is over and resumed once more has them still.
    simulate(make(rounds=2), engine="serial", out=tmp_path / "parts", resume=True)
    assert (tmp_path / "parts" / FILE).read_bytes() == second


@pytest.mark.parametrize(
    "config",
    [
        detection_data.experiment(
            rounds=1, data={"use": f"{__name__}:no_squares"}, evaluation={"holdout": 0.25}
        ),
        segments.segments(rounds=1, data={"use": f"{__name__}:no_segments"}),
    ],
    ids=["boxes", "masks"],
)
def test_without_test_images_nothing_of_a_clients_is_kept(config: ExperimentConfig, tmp_path: Path) -> None:
    simulate(config, engine="serial", out=tmp_path / "run")
    assert RunFolder(tmp_path / "run").rounds()[-1]["local"] is not None
    assert not (tmp_path / "run" / FILE).exists()
    assert "Worst images" not in report(tmp_path / "run")


def test_a_model_that_has_become_right_shows_no_older_pictures(tmp_path: Path) -> None:
    config = segments.segments(
        rounds=1,
        task={"use": "segmentation", "background": 0},
        data={"use": f"{__name__}:bare_ground"},
    )
    simulate(config, engine="serial", out=tmp_path / "run")
    assert not (tmp_path / "run" / FILE).exists()
    simulate(segments.segments(rounds=1), engine="serial", out=tmp_path / "other")
    worst_images.write(tmp_path / "run", kept(tmp_path / "other"))
    simulate(replace(config, rounds=2), engine="serial", out=tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / FILE).exists()
    assert "Worst images" not in report(tmp_path / "run")


def test_personal_models_have_none(tmp_path: Path) -> None:
    config = segments.segments(
        rounds=1,
        strategy={"use": "fedper"},
        model={"use": "unet", "width": 4, "depth": 2, "personal": ["head.*"]},
    )
    simulate(config, engine="serial", out=tmp_path / "run")
    assert not (tmp_path / "run" / FILE).exists()
