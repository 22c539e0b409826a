"""Every strategy trains and goes on to the same bits: stopped in order, or killed after its second round."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvision import ExperimentConfig, simulate
from fedvision.experiment import Experiment
from tests.experiments import tiny
from tests.methods import TRAINING, tables
from tests.test_simulation import same, stopping_after

MODEL = {"use": "cnn", "width": 4, "dense": 8}
WHOLE_COHORT = {"krum": "it needs five updates a round"}
"""Strategies that cannot do with three of five clients a round, and why."""
STOCK: list[dict[str, Any]] = [
    {"use": "flwr.serverapp.strategy:FedAvg", "fraction_train": 0.6, "fraction_evaluate": 0.0},
    {"use": "flwr.serverapp.strategy:FedAdam", "eta": 0.01},
    {"use": "flwr.serverapp.strategy:FedAvgM", "server_momentum": 0.5},
    {"use": "flwr.serverapp.strategy:FedYogi"},
    {"use": "flwr.serverapp.strategy:FedAdagrad"},
    {"use": "flwr.serverapp.strategy:FedProx", "proximal_mu": 0.1},
    {"use": "flwr.serverapp.strategy:FedMedian"},
    {"use": "flwr.serverapp.strategy:FedTrimmedAvg"},
    {"use": "flwr.serverapp.strategy:Krum"},
    {"use": "flwr.serverapp.strategy:MultiKrum", "num_nodes_to_select": 3},
    {"use": "flwr.serverapp.strategy:Bulyan"},
    {"use": "flwr.serverapp.strategy:QFedAvg", "client_learning_rate": 0.1},
    {
        "use": "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping",
        "strategy": {"use": "flwr.serverapp.strategy:FedAvg"},
        "noise_multiplier": 0.01,
        "clipping_norm": 10.0,
        "num_sampled_clients": 5,
    },
]
"""Strategies of Flower's own."""
_KILLING = """
import os, signal, sys
from pathlib import Path
from fedvision import ExperimentConfig, simulate
from fedvision.libraries import load_libraries
from fedvision.simulation import Simulation

done = Simulation.round_done

def kill(self, record, *rest):
    done(self, record, *rest)
    if record["round"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)

load_libraries()
Simulation.round_done = kill
for path in sorted(Path(sys.argv[1]).glob("*.toml")):
    if os.fork() == 0:
        simulate(ExperimentConfig.load(path), out=path.with_suffix(""))
        os._exit(0)
    print(path.stem, os.waitstatus_to_exitcode(os.wait()[1]))
"""
"""A process that begins each experiment of a folder in a child and kills it with its second round."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the same digits."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    simulate(tiny(rounds=1, model=MODEL), out=folder)
    return folder


def experiment(use: str, teacher: Path) -> ExperimentConfig:
    """Return three rounds of a built-in strategy."""
    own = tables(use, MODEL, teacher=teacher)
    if use not in WHOLE_COHORT:
        own["strategy"]["fraction"] = 0.6
    return tiny(**own, evaluation={"holdout": 0.2, "with_training": True})


def assert_same_run(config: ExperimentConfig, whole: Path, cut: Path) -> None:
    """Run an experiment from the start, and from where another run of it ended: the same bits and record."""
    expected, resumed = simulate(config, out=whole), simulate(config, out=cut, resume=True)
    assert same(expected.state, resumed.state)
    assert (whole / "rounds.jsonl").read_bytes() == (cut / "rounds.jsonl").read_bytes()
    assert all(record["local"] for record in expected.rounds[:2])
    assert expected.rounds[0]["clients"]
    initial = Experiment.build(config).model.state_dict()
    plain = {name: tensor for name, tensor in expected.state.items() if name in initial}
    assert any(not torch.equal(tensor, initial[name]) for name, tensor in plain.items())


def assert_stopped_run_is_whole(
    config: ExperimentConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop an experiment after its second round, and go on."""
    with monkeypatch.context() as patch:
        stopping_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, out=folder / "cut")
    assert json.loads((folder / "cut/summary.json").read_text())["status"] == "stopped"
    assert_same_run(config, folder / "whole", folder / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("use", TRAINING)
def test_a_built_in_trains_and_resumes_to_the_same_bits(
    use: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_stopped_run_is_whole(experiment(use, teacher), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STOCK, ids=lambda table: table["use"].rpartition(":")[2])
def test_a_stock_strategy_trains_and_resumes_to_the_same_bits(
    strategy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"holdout": 0.2, "with_training": True}
    config = tiny(strategy=strategy, evaluation=measured, privacy={"noise": "reproducible"})
    assert_stopped_run_is_whole(config, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def killed(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, int]]:
    """A folder with each strategy's run, killed, and the exit code of its process."""
    folder = tmp_path_factory.mktemp("killed")
    for use in TRAINING:
        (folder / f"{use}.toml").write_text(experiment(use, teacher).to_toml())
    command = [sys.executable, "-c", _KILLING, str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    codes = dict(line.split() for line in output.splitlines() if len(line.split()) == 2)
    return folder, {use: int(code) for use, code in codes.items() if use in TRAINING}


@pytest.mark.slow
@pytest.mark.parametrize("use", TRAINING)
def test_a_killed_run_goes_on_to_the_same_bits(
    use: str, killed: tuple[Path, Mapping[str, int]], teacher: Path, tmp_path: Path
) -> None:
    folder, codes = killed
    assert codes[use] == -signal.SIGKILL
    assert len((folder / use / "rounds.jsonl").read_text().splitlines()) == 2
    assert_same_run(experiment(use, teacher), tmp_path / "whole", folder / use)
