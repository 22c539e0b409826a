"""Simulated time: answers come in the order of the clients' speeds, on every engine and when resumed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvision import ExperimentConfig, simulate
from fedvision.engines.serial import SerialGrid
from fedvision.engines.virtual_time import VirtualTimeGrid, in_time, latency_model
from fedvision.errors import ConfigError, FedVisionError
from fedvision.experiment import Experiment
from fedvision.flower import internals
from fedvision.types import PluginSpec
from tests.engines.hosts import AppRecipe, adding
from tests.experiments import tiny
from tests.methods import TRAINING, tables

MODEL = {"use": "cnn", "width": 4, "dense": 8}
NO_BUFFER: dict[str, str] = {}
"""Strategies that refuse answers to earlier models before the run, and the sentence."""
SLOW = {"seconds_per_image": 0.01, "spread": 1.0, "jitter": 0.3}


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


def test_a_clients_seconds_follow_its_images_its_speed_and_the_round() -> None:
    even = latency_model(tiny(clock={"seconds_per_image": 0.5}), lambda client: 10.0 + client)
    assert (even(0, 1), even(4, 7)) == (5.0, 7.0)
    speeds = latency_model(tiny(clock={"seconds_per_image": 1.0, "spread": 0.5}), lambda client: 1.0)
    assert speeds(3, 1) == speeds(3, 2) != speeds(4, 1)
    logs = [math.log(speeds(client, 1)) for client in range(2000)]
    assert np.mean(logs) == pytest.approx(0.0, abs=0.05)
    assert np.std(logs) == pytest.approx(0.5, abs=0.05)
    jitter = latency_model(tiny(clock={"seconds_per_image": 1.0, "jitter": 0.5}), lambda client: 1.0)
    assert jitter(3, 1) != jitter(3, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "times"), [({"epochs": 1}, 1), ({"epochs": 3}, 3), ({"steps": 4, "batch_size": 8}, 0)]
)
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_the_clock_counts_each_image_trained_on_once_an_epoch(
    training: dict[str, int], times: int, holdout: float, tmp_path: Path
) -> None:
    """One round of equal speeds lasts as long as its largest client: images x epochs x 0.5 s."""
    config = tiny(
        rounds=1, training=training, evaluation={"holdout": holdout}, clock={"seconds_per_image": 0.5}
    )
    (record,) = simulate(config, out=tmp_path / "run").rounds
    split = Experiment.build(config).split
    most = max(len(split.clients[client]) for client in range(5))
    assert sum(len(split.clients[c]) for c in range(5)) == record["examples"]
    assert record["clock"] == (most * times if times else 32) * 0.5


def test_an_experiment_without_a_clock_or_a_buffer_keeps_its_grid() -> None:
    internals.identify(1)
    grid = SerialGrid(AppRecipe(app=adding, clients=3), 1)
    assert in_time(grid, tiny(round={"deadline": 3.0}), lambda client: 1.0) is grid
    assert isinstance(in_time(grid, tiny(round={"buffer": 3}), lambda client: 1.0), VirtualTimeGrid)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the same digits."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    simulate(tiny(rounds=1, model=MODEL), out=folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("use", TRAINING)
def test_a_buffer_works_with_every_strategy_or_is_refused(use: str, teacher: Path, tmp_path: Path) -> None:
    own = tables(use, MODEL, teacher=teacher)
    if use == "krum":
        own["strategy"]["malicious"] = 0  # which needs three updates
    config = tiny(**own, round={"buffer": 3, "concurrency": 5}, clock=SLOW, rounds=4)
    if use in NO_BUFFER:
        with pytest.raises(ConfigError, match=NO_BUFFER[use]):
            Experiment.build(config)
        return
    result = simulate(config, out=tmp_path / "run")
    assert all(len(record["clients"]) == 3 and record["changed"] for record in result.rounds)
    late = [item for record in result.rounds for item in record["late"]]
    assert any(item["used"] and item["weight"] < 1 for item in late)
    clock = [record["clock"] for record in result.rounds]
    assert clock == sorted(clock)
    assert clock[0] > 0
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.state.values())


@pytest.mark.slow
@pytest.mark.parametrize("round", [{"deadline": 1.2, "late": "next-round"}, {"deadline": 1.2}, {"buffer": 2}])
def test_bits_with_slow_clients(round: dict[str, Any], tmp_path: Path) -> None:
    """Slow clients end in the same bits on every engine and when resumed."""
    tables = {
        "strategy": {"use": "scaffold"},
        "update": [{"use": "top-k", "fraction": 0.05}],
        "evaluation": {"holdout": 0.2, "with_training": "buffer" not in round},
    }
    config = tiny(round=round, clock=SLOW, rounds=5, **tables)
    whole = simulate(config, out=tmp_path / "whole")
    assert any(record["late"] or record["busy"] for record in whole.rounds)
    assert all(record["local"] for record in whole.rounds)
    stack = simulate(config, out=tmp_path / "again", engine=PluginSpec(use="serial"))
    assert same(stack.state, whole.state)

    class Stop(Exception):
        pass

    from fedvision.simulation import Simulation

    done = Simulation.round_done

    def stop(self: Any, record: Any, *rest: Any) -> None:
        done(self, record, *rest)
        if record["round"] == 2:
            raise FedVisionError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Simulation, "round_done", stop)
        with pytest.raises(FedVisionError, match="stopped"):
            simulate(config, out=tmp_path / "half")
    resumed = simulate(config, out=tmp_path / "half", resume=True)
    assert same(resumed.state, whole.state)
    assert resumed.rounds == whole.rounds


@pytest.mark.slow
def test_ray_has_the_bits_of_the_serial_engine(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    config: ExperimentConfig = tiny(round={"buffer": 3, "concurrency": 5}, clock=SLOW, rounds=4)
    serial = simulate(config, out=tmp_path / "serial")
    ray = simulate(config, out=tmp_path / "ray", engine=PluginSpec(use="ray", args={"workers": 2}))
    assert same(ray.state, serial.state)
    assert ray.rounds == serial.rounds
