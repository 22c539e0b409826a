"""How far a model can be trusted, told by clients where the server has no test images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision.api import simulate
from fedvision.config import ExperimentConfig
from fedvision.data.shards import Shard
from fedvision.data.sources.arrays import digits
from fedvision.experiment import Experiment
from fedvision.files import plain
from fedvision.reporting.render import run_table
from fedvision.reporting.run_data import read_facts
from fedvision.runs.folder import RunFolder
from fedvision.runs.run_recorder import RunRecorder
from fedvision.server.refinement import StatisticsPhase
from fedvision.trained_model import load
from fedvision.training.evaluate import predict
from fedvision.unlearning import unlearn
from tests.experiments import FEDPER, digits_of_several_labels, several_labels, tiny


def untested(folder: Path, **tables: Any) -> ExperimentConfig:
    """Return an experiment on digits without test images, of which clients hold some out."""
    path, found = folder / "digits.npz", digits()
    if not path.exists():
        np.savez(path, train_images=found.train.images, train_labels=found.train.labels)
    data = {"use": "npz", "path": str(path), "classes": list(found.classes)}
    return tiny(**{"data": data, "evaluation": {"holdout": 0.3}} | tables)


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def one_pass(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """Return the record of the final model's calibration on all that clients hold out, together."""
    built, model = Experiment.build(config), load(folder)
    indices = np.concatenate([built.split.test(client) for client in range(len(built.split.clients))])
    train = built.dataset.train
    found = predict(
        model.network,
        Shard(images=train.images, labels=train.labels, indices=indices),
        model.settings,
        batch_size=100,
        num_classes=10,
        sharpness=model.description.probability_scale,
    )
    record: dict[str, Any] = plain(found.calibration.to_record())
    return record


def agrees(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """Check a run's calibration against one pass and return it.

    Counts are the same; the network itself may give an image other last bits in another batch.
    """
    found: dict[str, Any] = summary(folder)["calibration"]
    expected = one_pass(config, folder)
    counted, there = found["reliability"], expected["reliability"]
    assert (counted["images"], counted["right"]) == (there["images"], there["right"])
    assert sum(counted["images"]) > 100
    assert counted["confidence"] == pytest.approx(there["confidence"], rel=1e-6)
    assert (found["ap"], found["auroc"]) == (expected["ap"], expected["auroc"])
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untested")
    simulate(untested(folder), out=folder / "run")
    return folder


def test_the_record_is_that_of_all_held_out_images_together(place: Path) -> None:
    found = agrees(untested(place), place / "run")
    told = {name: value for name, value in found["held_out"].items() if name != "bytes"}
    images = sum(found["reliability"]["images"])
    assert told == {"clients": 5, "images": images, "asked": 5, "withheld": 0, "failed": []}
    facts, more = read_facts(RunFolder.read(place / "run")), found["held_out"]["bytes"]
    assert min(more.values()) > 0
    for way in ("down", "up"):
        assert facts.sent()[way] == more[way] + sum(record["bytes"][way] for record in facts.rounds)


def test_it_is_told_in_report_table_and_card(place: Path) -> None:
    folder = RunFolder.read(place / "run")
    images = summary(place / "run")["calibration"]["held_out"]["images"]
    where = f"The server has no test images: this rests on {images} images that 5 of 5 clients hold out"
    page = " ".join((place / "run/report.html").read_text().split())
    assert where in page
    assert "A dot stands for held-out images of about the same confidence" in page
    assert '<th scope="col" class="n">AUROC</th>' in page
    assert where in " ".join(run_table(folder).split())
    card = " ".join((place / "run/model_card.md").read_text().split())
    assert where in card
    assert "can be trusted was not measured" not in card


@pytest.mark.slow
def test_ray_finds_the_same(place: Path, tmp_path: Path) -> None:
    simulate(untested(place), engine="ray", out=tmp_path / "run")
    assert summary(tmp_path / "run")["calibration"] == summary(place / "run")["calibration"]


def test_clients_that_are_trained_together_are_asked_one_by_one(place: Path, tmp_path: Path) -> None:
    """The vectorized engine's model differs from the serial one's in last bits, so it has its own pass."""
    simulate(untested(place), engine="vectorized", out=tmp_path / "run")
    found = agrees(untested(place), tmp_path / "run")
    assert found["held_out"] == summary(place / "run")["calibration"]["held_out"]


def test_probabilities_are_those_after_the_temperature(place: Path, tmp_path: Path) -> None:
    config = untested(place, evaluation={"holdout": 0.3, "calibrate": True})
    simulate(config, out=tmp_path / "run")
    found, before = agrees(config, tmp_path / "run"), summary(place / "run")["calibration"]
    assert found["reliability"]["images"] != before["reliability"]["images"]
    assert found["reliability"]["right"] != before["reliability"]["right"]
    assert sum(found["reliability"]["right"]) == sum(before["reliability"]["right"])
    assert ", by which its temperature was chosen as well." in (tmp_path / "run/report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["_checkpoint", "finish"])
def test_a_run_killed_at_its_end_tells_the_same(
    killed: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the query and the last checkpoint it is asked again, after that it is not."""
    whole, asked = getattr(RunRecorder, killed), []
    ask = StatisticsPhase.reliability

    def dies(self: RunRecorder, *given: Any) -> None:
        if self.done == 3:
            raise KeyboardInterrupt
        whole(self, *given)

    def counted(self: StatisticsPhase, round: int, *given: Any) -> Any:
        asked.append(round)
        return ask(self, round, *given)

    monkeypatch.setattr(StatisticsPhase, "reliability", counted)
    monkeypatch.setattr(RunRecorder, killed, dies)
    with pytest.raises(KeyboardInterrupt):
        simulate(untested(place), out=tmp_path / "run")
    monkeypatch.setattr(RunRecorder, killed, whole)
    simulate(untested(place), out=tmp_path / "run", resume=True)
    assert asked == [3] * (1 + (killed == "_checkpoint"))
    assert summary(tmp_path / "run")["calibration"] == summary(place / "run")["calibration"]
    lines = [(folder / "rounds.jsonl").read_bytes() for folder in (tmp_path / "run", place / "run")]
    assert lines[0] == lines[1]


def test_a_run_that_goes_on_is_as_if_it_had_been_planned(place: Path, tmp_path: Path) -> None:
    simulate(untested(place, rounds=2), out=tmp_path / "run")
    short = summary(tmp_path / "run")["calibration"]
    simulate(untested(place), out=tmp_path / "run", resume=True)
    assert summary(tmp_path / "run")["calibration"] == summary(place / "run")["calibration"] != short
    lines = [(folder / "rounds.jsonl").read_bytes() for folder in (tmp_path / "run", place / "run")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    "tables",
    [
        pytest.param({"data": {"use": "digits"}}, id="test images"),
        pytest.param({"evaluation": {}}, id="nothing held out"),
        pytest.param(FEDPER, id="personal head"),
        pytest.param(
            {"model": {"use": "resnet8-wide", "width": 2, "shared": "no-batch-norm-statistics"}},
            id="personal statistics",
        ),
    ],
)
def test_it_is_not_asked_where_it_says_nothing(tables: dict[str, Any], place: Path, tmp_path: Path) -> None:
    simulate(untested(place, rounds=1, **tables), out=tmp_path / "run")
    found = summary(tmp_path / "run").get("calibration") or {}
    assert "held_out" not in found
    assert ("reliability" in found) == ("data" in tables)


def test_it_is_not_asked_where_an_image_may_have_several_labels(tmp_path: Path) -> None:
    tables = several_labels(digits_of_several_labels(tmp_path))
    with np.load(tables["data"]["path"]) as file:
        arrays = {name: file[name] for name in ("train_images", "train_labels")}
    np.savez(tables["data"]["path"], **arrays)
    simulate(untested(tmp_path, rounds=1, **tables), out=tmp_path / "run")
    assert "calibration" not in summary(tmp_path / "run")


def test_what_was_told_of_a_model_is_not_told_of_another_one(place: Path, tmp_path: Path) -> None:
    model = {"use": "cnn", "width": 4, "dense": 8, "frozen": ["backbone.*"]}
    simulate(untested(place, rounds=1, model=model, strategy={"use": "closed-form"}), out=tmp_path / "run")
    assert "reliability" in summary(tmp_path / "run")["calibration"]
    unlearn(tmp_path / "run", [1], out=tmp_path / "without")
    assert "calibration" not in summary(tmp_path / "without")
