"""The run folder: what is refused, what comes back, and that equal runs leave equal bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedvision.config import ExperimentConfig
from fedvision.errors import RecordError, RunFolderError
from fedvision.runs import folder as folder_module
from fedvision.runs.folder import RunFolder
from fedvision.runs.model_description import ImageShape, Inference, ModelDescription, Normalisation

CONFIG = ExperimentConfig.from_dict({"data": {"use": "digits"}, "training": {"lr": 0.05}})
DESCRIPTION = ModelDescription(
    rounds=1,
    classes=("no", "yes"),
    image=ImageShape(height=8, width=8, channels=1),
    transforms=Normalisation(mean=(0.5,), std=(0.25,)),
    probability_scale=1.0,
    inference=Inference(batch_size=100, precision="float32", channels_last=True),
    model=CONFIG.model,
    dtypes=("float32",),
    sha256="",
)


def test_a_new_folder_holds_experiment_and_environment(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "deep" / "run", CONFIG)
    assert folder.config() == CONFIG
    assert folder.config_text() == CONFIG.to_toml()
    facts = folder.environment()
    assert facts["torch"] == torch.__version__
    assert facts["flwr"].startswith("1.")
    assert facts["device"] == "cpu" or "cuda" in facts["device"] or facts["device"] == "mps"
    assert folder.rounds() == folder.timings() == []
    assert folder.split() == folder.summary() == {}
    assert folder.mistakes() is None


def test_a_folder_with_files_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(RunFolderError, match=r"not empty.*--resume.*--out"):
        RunFolder.create(tmp_path, CONFIG)
    with pytest.raises(RunFolderError, match=r"no config\.toml"):
        RunFolder.resume(tmp_path, CONFIG)


def test_what_a_kill_left_incomplete_does_not_fill_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.toml.part").write_text("name =")
    assert RunFolder.resume(tmp_path, CONFIG).config() == CONFIG


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(RunFolderError, match=r"run: the run folder cannot be written: File exists; .*--out"):
        RunFolder.create(tmp_path / "run", CONFIG)
    with pytest.raises(RunFolderError, match="Not a directory"):
        RunFolder.create(tmp_path / "run" / "inner", CONFIG)


def test_no_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes | str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder_module, "replace_file", refuse)
    with pytest.raises(RunFolderError, match="cannot be written: Permission denied"):
        RunFolder.create(tmp_path / "run", CONFIG)


def test_reading_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="there is no such folder; name a folder that a run has written"):
        RunFolder.read(tmp_path / "none")
    RunFolder.create(tmp_path / "run", CONFIG)
    assert RunFolder.read(tmp_path / "run").config() == CONFIG


def test_a_damaged_experiment_is_named(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    (folder.path / "config.toml").write_text("name = ")
    with pytest.raises(RunFolderError, match=r"config\.toml: it cannot be read"):
        folder.config()


def test_another_experiment_is_refused_by_its_first_differing_key(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", CONFIG)
    changed = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, lr=0.1, epochs=2))
    with pytest.raises(RunFolderError, match=r"training\.lr is 0\.05 there and 0\.1 here"):
        RunFolder.resume(tmp_path / "run", changed)
    other = ExperimentConfig.from_dict({**CONFIG.to_dict(), "partition": {"use": "iid", "clients": 3}})
    with pytest.raises(RunFolderError, match=r"partition\.clients is not set there and 3 here"):
        RunFolder.resume(tmp_path / "run", other)


def test_a_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    folder = RunFolder.resume(tmp_path / "run", CONFIG)
    folder.append_round({"round": 1}, {"train": 1.0})
    folder.write_summary({"status": "stopped"})
    again = RunFolder.resume(tmp_path / "run", CONFIG)
    assert again.summary() == {"status": "stopped"}
    again.settle({}, {})
    assert again.rounds() == [{"round": 1}]
    assert again.summary() == {}
    assert "earlier" not in again.environment()


def test_how_a_finished_run_ended_stays(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", CONFIG).write_summary({"status": "finished", "rounds": 10})
    assert RunFolder.resume(tmp_path / "run", CONFIG).summary()["rounds"] == 10


def test_a_run_that_goes_on_elsewhere_keeps_both_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpus in (4, 8, 8, 16):
        monkeypatch.setattr(folder_module, "environment", lambda device, start, cpus=cpus: {"cpus": cpus})
        folder = RunFolder.resume(tmp_path / "run", CONFIG)
        folder.settle({}, {})
    assert folder.environment() == {"cpus": 16, "earlier": [{"cpus": 4}, {"cpus": 8}]}


def test_the_split_must_stay_the_same(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    facts = {"digest": "abc", "classes": ["a", "b"], "counts": np.array([[1, 2]]), "left_out": 0}
    folder.write_split(facts)
    folder.write_split(facts)
    assert folder.split()["counts"] == [[1, 2]]
    with pytest.raises(RunFolderError, match=r"split differ.*digest xyz, then abc"):
        folder.write_split({**facts, "digest": "xyz"})


def test_equal_runs_leave_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for name, seconds in (("one", 0.5), ("two", 0.7)):
        folder = RunFolder.create(tmp_path / name, CONFIG)
        record = {"round": 1, "train_loss": np.float64(1 / 3), "server": None, "lr": float("nan")}
        folder.append_round(record if name == "one" else dict(reversed(record.items())), {"train": seconds})
        folder.write_model({"w": torch.ones(2)}, DESCRIPTION)
        contents.append([(folder.path / file).read_bytes() for file in ("rounds.jsonl", "model.safetensors")])
    assert contents[0] == contents[1]
    assert json.loads(contents[0][0]) == {"round": 1, "train_loss": 1 / 3, "server": None, "lr": None}
    assert folder.timings() == [{"round": 1, "train": 0.7}]


def test_measurement_in_the_round_of_its_model(tmp_path: Path) -> None:
    """What was measured in the next round stands in the round whose model it is of."""
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    lines: list[dict[str, Any]] = [
        {"round": 1, "local": None},
        {"round": 2, "local": None, "received": {"round": 1, "loss": 0.5}},
        {"round": 3, "local": None, "received": None},
        {"round": 4, "local": {"loss": 0.25}},
    ]
    for line in lines:
        folder.append_round(line, {})
    assert folder.rounds() == [
        {"round": 1, "local": {"loss": 0.5}},
        {"round": 2, "local": None},
        {"round": 3, "local": None},
        {"round": 4, "local": {"loss": 0.25}},
    ]


def test_the_final_model_opens_without_fedvision(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.write_model({"w": torch.arange(3.0)}, DESCRIPTION)
    assert torch.equal(load_file(folder.path / "model.safetensors")["w"], torch.arange(3.0))


def test_a_lost_folder_is_a_record_error(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(RecordError, match=r"round 1 could not be written: No such file"):
        folder.append_round({"round": 1}, {})
    with pytest.raises(RecordError, match=r"summary\.json could not be written"):
        folder.write_summary({})
