"""``model.json``: a run's model, and which of its faults are refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision import simulate
from fedvision.errors import RunError, RunFolderError
from fedvision.experiment import Experiment
from fedvision.runs.model_description import FileDecoding, ModelDescription, counts_of, describe
from fedvision.types import PluginSpec
from tests.experiments import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round with a loss of its own probability scale."""
    path = tmp_path_factory.mktemp("described") / "run"
    simulate(tiny(rounds=1, loss={"use": "ldam", "scale": 20.0}), out=path)
    return path


def test_model_description_of_a_finished_run(run: Path) -> None:
    written = json.loads((run / "model.json").read_text())
    digest = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    counts = np.sum(json.loads((run / "split.json").read_text())["counts"], axis=0)
    assert written == {
        "format": 1,
        "task": {"use": "classification"},
        "rounds": 1,
        "classes": [str(digit) for digit in range(10)],
        "class_counts": counts.tolist(),
        "image": {"height": 8, "width": 8, "channels": 1},
        "transforms": {"mean": [0.5], "std": [0.25], "size": 0, "interpolation": "bilinear"},
        "probability_scale": 20.0,
        "inference": {"batch_size": 100, "precision": "float32", "channels_last": True},
        "metrics": [],
        "code": {},
        "model": {
            "use": "cnn",
            "width": 4,
            "dense": 8,
            "shared": "all",
            "weights": "",
            "train": "all",
            "lora": {"rank": 8, "alpha": 16.0, "targets": ["*"], "exact": False},
            "mirrored": False,
            "feature_layers": [],
            "inputs": {},
            "expand": {"use": ""},
            "head": {"use": ""},
            "personal": [],
            "frozen": [],
        },
        "weights_sha256": "",
        "part_weights_sha256": {},
        "dtypes": ["float32"],
        "personal": [],
        "sha256": digest,
    }
    assert ModelDescription.read(run).to_dict() == written


def test_tensors_that_stay_on_clients_are_named(tmp_path: Path) -> None:
    model = {"use": "resnet8", "norm": "batch", "width": 4, "shared": "no-batch-norm-statistics"}
    simulate(tiny(rounds=1, model=model, evaluation={"holdout": 0.2}), out=tmp_path / "run")
    personal = ModelDescription.read(tmp_path / "run").personal
    assert personal
    assert all(name.endswith(("running_mean", "running_var")) for name in personal)


def test_a_run_that_fails_describes_its_last_good_model(tmp_path: Path) -> None:
    strategy = {"use": "tests.test_simulation:Failing"}
    with pytest.raises(RunError):
        simulate(tiny(strategy=strategy, rounds=9, round={"failed_rounds": 2}), out=tmp_path / "run")
    found = ModelDescription.read(tmp_path / "run")
    assert found.rounds == 3
    assert found.sha256 == hashlib.sha256((tmp_path / "run/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"use": "image-folder", "path": "x", "size": 8}, FileDecoding(size=8, fit="crop")),
        (
            {"use": "manifest", "path": "x", "size": 8, "fit": "pad", "range": 1023.0},
            FileDecoding(size=8, fit="pad", range=1023.0),
        ),
        ({"use": "npz", "path": "x"}, None),
        ({"use": "fashion-mnist"}, None),
    ],
)
def test_how_files_were_decoded(args: dict[str, Any], expected: FileDecoding | None) -> None:
    """A torchvision set that is an array on the disk has a key ``fit`` that it does not use."""
    source = PluginSpec(use=args["use"], args={key: args[key] for key in args if key != "use"})
    experiment = Experiment.build(tiny())
    experiment = replace(experiment, config=replace(experiment.config, data=source))
    found = describe(experiment, rounds=1, class_counts=None, probability_scale=1.0)
    assert found.decoding == expected
    assert found.class_counts is None


def test_counts_of_a_split() -> None:
    assert counts_of({"counts": [[1, 2], [3, 0]]}) == (4, 2)
    assert counts_of({"counts": [[1, 2]], "totals": [30, 40]}) == (30, 40)
    assert counts_of({"counts": [[1, 2]], "totals": [30, 40], "distinct": [3, 4]}) == (3, 4)
    assert counts_of({}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "there is no such file"),
        ("{", "this is no JSON"),
        ("[1]", "this is no table"),
        ("{}", "it is damaged: format is missing"),
        ({"format": 2}, "its format is 2, and this fedvision reads 1"),
        ({"format": "1"}, "it is damaged: format must be a whole number"),
        ({"task": 3}, "it is damaged: task must be a table"),
        ({"classes": []}, "it is damaged: classes must name"),
        ({"class_counts": [1]}, "it is damaged: class_counts must hold 10 numbers"),
        ({"colour": 1}, "it is damaged: colour: there is no such key"),
        ({"image": {"height": 0, "width": 8, "channels": 1}}, "it is damaged: image.height must be >= 1"),
        ({"probability_scale": -1.0}, "it is damaged: probability_scale must be > 0"),
    ],
)
def test_faults_are_one_sentence(change: Any, message: str, run: Path, tmp_path: Path) -> None:
    if isinstance(change, dict):
        change = json.dumps(json.loads((run / "model.json").read_text()) | change)
    if change is not None:
        (tmp_path / "model.json").write_text(change)
    with pytest.raises(RunFolderError) as caught:
        ModelDescription.read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'model.json'}: {message}")
    assert "\n" not in str(caught.value)
