"""The command: what it measures, and what it refuses before it measures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
import workloads
from harness import Turn

from fedvision.config import ExperimentConfig


def options(**chosen: Any) -> argparse.Namespace:
    base = {"workloads": ["w1", "idle"], "rivals": ["plain", "flower"], "engines": ["serial"]}
    return argparse.Namespace(**{**base, "repetitions": 1, **chosen})


def test_an_engine_that_is_not_there_is_refused_in_one_sentence() -> None:
    with pytest.raises(SystemExit, match=r"fedvision has no engine 'warp'; there are .*serial"):
        peers.check_engines(["serial", "warp"])
    peers.check_engines(["serial", "my_module:engine"])


def test_only_who_can_be_idle_is_measured_idle() -> None:
    found = {(turn.workload, turn.rival) for turn in peers.plan(options())}
    w1 = {("w1", "plain"), ("w1", "flower"), ("w1", "fedvision-serial")}
    assert found == w1 | {("idle", "flower"), ("idle", "fedvision-serial")}


def test_our_side_runs_with_the_given_engine_and_rounds() -> None:
    command = peers.command(Turn("w2", "fedvision-ray", 0), {"w2": 4})
    assert command[2:] == ["w2", "--engine", "ray", "--precision", "float32", "--rounds", "4"]
    assert Path(command[1]).is_file()
    lower = peers.command(Turn("w2", "fedvision-ray+bfloat16", 0), {"w2": 4})
    assert lower[4:7] == ["ray", "--precision", "bfloat16"]
    peers.check_engines(["ray+bfloat16"])


@pytest.mark.parametrize("workload", workloads.WORKLOADS)
def test_workloads_are_experiments(workload: str) -> None:
    config = ExperimentConfig.from_dict(workloads.experiment(workload, rounds=2))
    w = workloads.WORKLOADS[workload]
    assert config.rounds == 2
    assert round(w["clients"] * config.strategy.args["fraction"]) == w["cohort"]


@pytest.mark.real_data
def test_rivals_get_our_split_cohorts_and_weights(
    fashion_mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDVISION_DATA", str(fashion_mnist_root))
    workloads.export("w2", tmp_path / "w2.npz")
    held = np.load(tmp_path / "w2.npz")
    assert sorted(held["indices"]) == list(range(60_000))
    assert held["ends"].tolist()[-1] == 60_000
    assert len(held["ends"]) == 10
    assert held["cohorts"].tolist() == [list(range(10))] * 5
    assert held["initial.dense.weight"].shape == (128, 1600)
