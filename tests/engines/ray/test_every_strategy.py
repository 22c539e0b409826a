"""Every built-in strategy on Ray's workers: the bits and the record of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision import simulate
from fedvision.types import PluginSpec
from tests.experiments import tiny
from tests.methods import TRAINING, tables
from tests.test_simulation import same


@pytest.mark.long
@pytest.mark.parametrize("use", TRAINING)
def test_every_strategy_has_the_same_bits_on_workers(use: str, tmp_path: Path) -> None:
    model = {"use": "cnn", "width": 4, "dense": 8}
    if use == "distillation":
        simulate(tiny(rounds=1, model=model), out=tmp_path / "teacher")
    config = tiny(**tables(use, model, teacher=tmp_path / "teacher"))
    serial = simulate(config, out=tmp_path / "serial")
    there = simulate(config, engine=PluginSpec(use="ray", args={"workers": 2}), out=tmp_path / "ray")
    assert same(there.state, serial.state)
    assert there.rounds == serial.rounds
