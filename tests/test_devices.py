"""Every strategy, loss and task on a device that is not the CPU: the CPU's model, and nothing in float64."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedvision import ExperimentConfig, devices, simulate
from fedvision.errors import ConfigError
from fedvision.runs.folder import RunFolder
from tests import detection_data
from tests.detection_data import SMALL
from tests.emulated_device import KIND
from tests.experiments import digits_of_several_labels, several_labels, tiny
from tests.methods import LOSSES, STRATEGIES, tables
from tests.segments import segments

ROOT = Path(__file__).parents[1]
MODEL: dict[str, Any] = {"use": "cnn", "width": 4, "dense": 8}
NOT_HERE = {"zero-shot": "its head is made of class embeddings, of which digits have none"}
"""Strategies that are not tried here, and why."""
OF_PIXELS = ("cross-entropy", "dice", "focal-tversky", "logit-adjusted")
OF_BOXES = {
    "class-balanced-sigmoid-focal": "fcos",
    "equalization": "retinanet",
    "seesaw": "ssdlite",
    "sigmoid-focal": "retinanet",
    "weighted": "faster-rcnn",
}
OF_LABELS = ("asymmetric", "binary-cross-entropy", "distribution-balanced")
FEATURES: dict[str, dict[str, Any]] = {
    "lora": {"model": {**MODEL, "train": "lora", "lora": {"rank": 2}}},
    "calibrated": {"evaluation": {"holdout": 0.2, "calibrate": True}},
    "cached-features": {"model": {**MODEL, "train": "head"}, "training": {"lr": 0.1, "cache_features": True}},
    "mixup": {"transforms": {"flip": True, "mixup": 0.2}, "training": {"lr": 0.1, "sampler": "balanced"}},
    "clip": {"update": [{"use": "clip", "max_norm": 0.1}, {"use": "float16"}]},
    "fusion": {
        "model": {"use": "fusion"},
        "evaluation": {"holdout": 0.2, "statistics": ["faithfulness", "calibration"]},
    },
}
"""What else computes where the network is."""


def digits(**own: Any) -> ExperimentConfig:
    """Return two rounds on few digits."""
    base: dict[str, Any] = {
        "rounds": 2,
        "partition": {"use": "dirichlet", "clients": 5, "alpha": 0.5, "imbalance": 30},
        "evaluation": {"holdout": 0.2},
        "model": MODEL,
    }
    return tiny(**base | own)


def experiments(folder: Path) -> dict[str, ExperimentConfig]:
    """Return what is tried, by name."""
    archive, flip = digits_of_several_labels(folder), {"flip": True, "crop": 2, "rotation": 10.0}
    found = {use: digits(**tables(use, MODEL, teacher=folder / "teacher")) for use in STRATEGIES}
    found = {use: one for use, one in found.items() if use not in NOT_HERE}
    found |= {f"loss-{use}": digits(loss={"use": use}) for use in LOSSES}
    found |= {name: digits(**own) for name, own in FEATURES.items()}
    found |= {f"pixels-{use}": segments(loss={"use": use}, transforms=flip) for use in OF_PIXELS}
    found |= {use: detection_data.experiment(use, transforms=flip) for use in SMALL}
    found |= {
        f"boxes-{use}": detection_data.experiment(on, loss={"use": use}) for use, on in OF_BOXES.items()
    }
    for use in OF_LABELS:
        found[f"labels-{use}"] = digits(**several_labels(archive) | {"loss": {"use": use}})
    return found


def on(device: str, config: ExperimentConfig) -> ExperimentConfig:
    """Return an experiment that trains on a device."""
    table = config.to_dict()
    table["training"]["device"] = device
    return ExperimentConfig.from_dict(table)


def on_the_device(configs: dict[str, ExperimentConfig], folder: Path) -> dict[str, str]:
    """Run experiments on the emulated device; return what went wrong with each."""
    folder.mkdir()
    for name, config in configs.items():
        (folder / f"{name}.toml").write_text(on(KIND, config).to_toml())
    program = [sys.executable, "-m", "tests.emulated_device", str(folder)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_a_device_without_float64_ends_in_the_cpus_models(tmp_path: Path) -> None:
    """The CPU's numbers, but for sums that the device makes in float32, as of q-FedAvg's losses."""
    simulate(digits(rounds=1), out=tmp_path / "teacher")
    found = experiments(tmp_path)
    ended = on_the_device(found, tmp_path / "there")
    assert {name: wrong for name, wrong in ended.items() if wrong} == {}
    assert ended.keys() == found.keys()
    for name, config in found.items():
        here, there = tmp_path / "here" / name, tmp_path / "there" / name
        simulate(on("cpu", config), out=here)
        ours, theirs = (RunFolder.read(one).rounds() for one in (here, there))
        assert [record["refused"] for record in ours] == [record["refused"] for record in theirs] == [[], []]
        expected, state = (load_file(one / "model.safetensors") for one in (here, there))
        assert state.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(state[key], tensor, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")


@pytest.mark.slow
def test_the_emulated_device_refuses_what_a_gpu_or_an_apple_chip_does(tmp_path: Path) -> None:
    faults = {
        "float64": "does not hold float64",
        "elsewhere": "expected all tensors to be on the same device",
        "generator": "device type for generator",
        "array": "numpy",
    }
    made = {fault: digits(loss={"use": "tests.emulated_device:faulty", "fault": fault}) for fault in faults}
    ended = on_the_device(made, tmp_path / "there")
    assert {fault: told in ended[fault] for fault, told in faults.items()} == dict.fromkeys(faults, True), (
        ended
    )
    simulate(made["float64"], out=tmp_path / "here")


def test_the_widest_floats_of_a_device() -> None:
    assert devices.widest_float(torch.device("mps")) is torch.float32
    assert {devices.widest_float(torch.device(kind)) for kind in ("cpu", "cuda")} == {torch.float64}
    exact, narrow = torch.zeros(1, dtype=torch.float64), torch.zeros(1)
    assert [devices.holds(torch.device("mps"), one) for one in (exact, narrow)] == [False, True]
    assert devices.holds(torch.device("cuda"), exact)


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.device: 'nonsense' is not available on this machine"):
        devices.choose_device("nonsense")
