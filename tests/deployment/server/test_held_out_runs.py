"""What rests on clients' held-out images across machines: trust in the last model, the best one, the end."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision.config import ExperimentConfig
from fedvision.data.shards import Shard
from fedvision.data.sources.arrays import digits
from fedvision.experiment import Experiment
from fedvision.files import plain
from fedvision.runs.folder import RunFolder
from fedvision.trained_model import load
from fedvision.training.evaluate import predict
from tests.deployment.server.machines import WAIT_S, Machines, digest, eventually, machines

pytestmark = pytest.mark.long

EXPERIMENT = """
name = "held-out"
seed = 3
rounds = {rounds}
[data]
use = "npz"
path = "{path}"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
[partition]
use = "dirichlet"
clients = 2
alpha = 1.0
[model]
use = "cnn"
width = 4
dense = 8
[training]
lr = {lr}
[evaluation]
holdout = 0.2
"""
EARLY = 'keep = "best"\nscore = "accuracy"\npatience = 2\n'


def untested(folder: Path, rounds: int, lr: float) -> str:
    """Return an experiment whose server has no test images."""
    train, path = digits().train, folder / "digits.npz"
    np.savez(path, train_images=train.images, train_labels=train.labels)
    return EXPERIMENT.format(rounds=rounds, path=path, lr=lr)


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def of_north(here: Machines) -> dict[str, Any]:
    """Return what the run's model says of the images that north holds out."""
    built, model = Experiment.build(ExperimentConfig.load(here.experiment)), load(here.out)
    train = built.dataset.train
    shard = Shard(images=train.images, labels=train.labels, indices=built.split.test(0))
    found = predict(
        model.network,
        shard,
        model.settings,
        batch_size=100,
        num_classes=10,
        sharpness=model.description.probability_scale,
    )
    record: dict[str, Any] = plain(found.calibration.to_record())
    return record


def test_a_client_that_does_not_allow_the_statistic_is_left_out_of_it_alone(
    tmp_path: Path, pki: Path
) -> None:
    with machines(tmp_path, pki, untested(tmp_path, rounds=2, lr=0.1)) as here:
        server = here.server()
        here.statistics = ("calibration",)
        here.client("north")
        here.statistics = ()
        here.client("south")
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
    ours, theirs = (RunFolder.read(path).rounds() for path in (here.out, tmp_path / "simulated"))
    assert [record["refused"] for record in ours] == [[], []]
    assert [record["local"] for record in ours] == [record["local"] for record in theirs]
    assert [record["bytes"] for record in ours] == [record["bytes"] for record in theirs]
    found, whole = summary(here.out)["calibration"], summary(tmp_path / "simulated")["calibration"]
    held_out, expected = found.pop("held_out"), of_north(here)
    assert found == expected
    images = sum(expected["reliability"]["images"])
    assert 0 < images < whole["held_out"]["images"]
    assert (held_out["clients"], held_out["images"], held_out["asked"]) == (1, images, 2)
    assert (held_out["withheld"], held_out["failed"]) == (1, [])
    assert held_out["bytes"]["down"] == whole["held_out"]["bytes"]["down"]
    assert held_out["bytes"]["up"] * 2 == whole["held_out"]["bytes"]["up"]
    page = " ".join((here.out / "report.html").read_text().split())
    assert f"this rests on {images} images that 1 of 2 clients hold out from training; of 2 clients 1" in page
    assert "nothing is sent: [statistic] use = 'calibration'" in here.log("south")
    assert "nothing is sent" not in here.log("north")
    assert not summary(here.out)["notices"]


def test_a_run_ends_early_with_its_best_model(tmp_path: Path, pki: Path) -> None:
    """Twelve rounds, of which no model after the third is better; the clients wait for the next run."""
    with machines(tmp_path, pki, untested(tmp_path, rounds=12, lr=0.6) + EARLY) as here:
        server = here.server()
        clients = [here.client(name) for name in here.names]
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
        for name in here.names:
            eventually(lambda name=name: "its run is over" in here.log(name), f"{name} learns of it")
            assert here.log(name).count("train: done") == 5
        for client in clients:
            assert client.poll() is None
            client.send_signal(signal.SIGTERM)
            assert client.wait(WAIT_S) == 0
    simulated = tmp_path / "simulated"
    ours, theirs = (RunFolder.read(path).rounds() for path in (here.out, simulated))
    assert len(ours) == len(theirs) == 5
    assert [record["local"] for record in ours] == [record["local"] for record in theirs]
    assert ours[-1]["stopped_early"] == theirs[-1]["stopped_early"]
    assert ours[-1]["stopped_early"] in here.log("server")
    assert digest(here.out / "best") == digest(simulated / "best") != digest(here.out)
    assert load(here.out / "best").description.rounds == 3
    assert summary(here.out)["best"] == summary(simulated)["best"]
    assert summary(here.out)["best"]["round"] == 3
    page = " ".join((here.out / "report.html").read_text().split())
    assert "the model was best after round 3" in page
    assert "was not measured: of 2 clients 2 did not share the statistic calibration" in page
