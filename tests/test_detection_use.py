"""A trained detector in use: boxes in files and arrays, scores, drawings, pages, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvision import simulate
from fedvision.cli import main
from fedvision.detecting import detect
from fedvision.errors import ConfigError, FedVisionError
from fedvision.reporting.boxes import box_section
from fedvision.reporting.run_data import read_facts
from fedvision.runs.folder import RunFolder
from fedvision.trained_model import load
from tests.detection_data import experiment, squares


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that finds squares."""
    folder = tmp_path_factory.mktemp("detection") / "run"
    config = experiment(
        rounds=6,
        training={"batch_size": 4, "lr": 0.02, "momentum": 0.9, "epochs": 3, "device": "cpu"},
        evaluation={"holdout": 0.2},
        data={"use": f"{squares.__module__}:squares", "images": 30},
    )
    simulate(config, engine="serial", out=folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Test images as files."""
    folder = tmp_path / "photos"
    folder.mkdir()
    test = squares(images=30).test
    assert test is not None
    for number, image in enumerate(test.images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_boxes_are_found_in_arrays_and_in_their_files(run: Path, photos: Path) -> None:
    test = squares(images=30).test
    assert test is not None
    model = load(run)
    found = detect(model, test.images, score=0.1)
    assert len(found) == len(test.images)
    assert (np.diff(found.images) >= 0).all()
    assert (found.scores >= 0.1).all()
    there = detect(model, photos, score=0.1)
    assert np.array_equal(there.boxes, found.boxes)
    assert np.array_equal(there.images, found.images)
    assert len(detect(model, test.images, score=0.99).scores) < len(found.scores)
    # The best boxes are where squares are.
    best = found.boxes[np.searchsorted(found.images, np.unique(found.images))]
    true = [
        test.labels[image, 1 : 1 + int(test.labels[image, 0, 0]), 1:5] for image in np.unique(found.images)
    ]
    near = [len(own) and np.abs(own - box).max(axis=1).min() < 6 for own, box in zip(true, best, strict=True)]
    assert np.mean(near) > 0.5


def test_boxes_by_command(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, table, drawn = tmp_path / "found.jsonl", tmp_path / "found.csv", tmp_path / "drawn"
    command = ["predict", str(run), str(photos), "--score", "0.1", "--jsonl", str(lines), "--csv", str(table)]
    assert main.main([*command, "--draw", str(drawn)]) == 0
    shown = capsys.readouterr().out
    assert shown.split()[:7] == ["file", "class", "score", "x", "y", "width", "height"]
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert found
    for one in found:
        assert list(one) == ["file", "class", "score", "x", "y", "width", "height"]
        assert one["class"] in ("red", "green", "blue")
        assert 0 <= one["x"] <= one["x"] + one["width"] <= 32.0001
    assert len(table.read_text().splitlines()) == len(found) + 1
    assert len(list(drawn.iterdir())) == 6
    with Image.open(drawn / "00000-0.png") as picture:
        assert picture.size == (32, 32)
    assert main.main(["predict", str(run), str(photos), "--score", "1.5"]) == 2
    assert "score must be" in capsys.readouterr().err


def test_scores_by_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = f"use = '{squares.__module__}:squares', images = 30"
    assert main.main(["evaluate", str(run), "--data", table, "--json", str(tmp_path / "a.json")]) == 0
    shown = capsys.readouterr().out
    assert "6 test images" in " ".join(shown.split()), "the line is broken where the folder's name is long"
    for name in ("AP50", "AP of small boxes", "AR100", "tail classes", "boxes", "green"):
        assert name in shown
    page = json.loads((tmp_path / "a.json").read_text())
    assert page["images"] == 6
    assert page["classes"]["red"].keys() == {"training_boxes", "boxes", "ap", "ap50", "ap75", "ar100"}
    recorded = RunFolder(run).rounds()[-1]["server"]
    assert page["scores"]["ap"] == pytest.approx(recorded["scores"]["ap"])
    assert page["loss"] == pytest.approx(recorded["loss"])


def test_the_report_shows_classes_and_curves(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (run / "report.html").read_text()
    assert "Boxes, class by class" in page
    assert re.search(r"keep images with \d+ boxes in all, of 3 classes", page)
    assert 'id="precision-recall' in page or "precision over recall at an IoU of 0.5" in page
    assert "recall is the share of those with the label" not in page
    section = box_section(read_facts(RunFolder(run)))
    assert section is not None
    assert [row.name for row in section.rows] == ["red", "green", "blue"] or section.rows
    assert sum(row.test for row in section.rows) == sum(
        RunFolder(run).rounds()[-1]["server"]["boxes"]["boxes"]
    )
    assert main.main(["report", str(run)]) == 0
    assert "rarest classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["explain", "RUN", "PHOTOS"],
        ["export", "RUN", "--format", "onnx"],
        ["prune", "RUN", "--out", "OUT"],
        ["adjust", "RUN", "--out", "OUT"],
    ],
    ids=lambda command: command[0],
)
def test_what_knows_no_boxes_refuses_in_one_sentence(
    command: list[str], run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "RUN": str(run),
        "PHOTOS": str(photos),
        "OUT": str(tmp_path / "out"),
    }
    assert main.main([names.get(one, one) for one in command]) != 0
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "Error" not in told
    assert "one of your own" not in told


def test_a_model_of_another_task_finds_no_boxes(tmp_path: Path) -> None:
    from tests.experiments import tiny

    simulate(tiny(rounds=1), engine="serial", out=tmp_path / "run")
    model = load(tmp_path / "run")
    with pytest.raises(ConfigError, match="finds no boxes"):
        detect(model, np.zeros((1, 8, 8, 1), np.uint8))
    assert main.main(["predict", str(tmp_path / "run"), "x.png", "--draw", str(tmp_path)]) == 2


def test_classes_are_not_predicted_of_a_detector(run: Path) -> None:
    with pytest.raises(FedVisionError, match=r"finds boxes and names no class"):
        load(run).predict(np.zeros((1, 32, 32, 3), np.uint8))
