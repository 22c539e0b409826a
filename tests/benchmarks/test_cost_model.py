"""The cost model's measurement plays real rounds, and its sums follow the formula."""

from __future__ import annotations

from pathlib import Path

import cost_model

from fedvision.engines.client_host import SimulatedClientHosts
from fedvision.engines.serial import SerialEngine
from fedvision.experiment import Experiment
from fedvision.models.state import get_state, shared_names
from tests.experiments import tiny


def test_rounds_of_an_engine_are_played_and_timed(tmp_path: Path) -> None:
    federation = Experiment.build(tiny())
    host_factory = SimulatedClientHosts(
        config=federation.config,
        dataset=federation.dataset,
        split=federation.split,
        model=federation.model,
        memory=tmp_path,
    )
    state = get_state(host_factory.model, shared_names(host_factory.model, "all"))
    with SerialEngine().open(host_factory) as grid:
        assert 0 < cost_model.rounds(grid, host_factory, 3, repeat=1, state=state) < 60
