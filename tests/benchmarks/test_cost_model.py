"""The cost model's measurement plays real rounds, and its sums follow the formula."""

from __future__ import annotations

from pathlib import Path

import cost_model

from fedvision.engines.serial import SerialEngine
from fedvision.federation import Federation
from fedvision.flower.hosting import SimulatedClients
from fedvision.models.state import get_state, travelling
from tests.experiments import tiny


def test_rounds_of_an_engine_are_played_and_timed(tmp_path: Path) -> None:
    federation = Federation.build(tiny())
    recipe = SimulatedClients(
        config=federation.config,
        dataset=federation.dataset,
        split=federation.split,
        model=federation.model,
        memory=tmp_path,
    )
    state = get_state(recipe.model, travelling(recipe.model, "all"))
    with SerialEngine().open(recipe) as grid:
        assert 0 < cost_model.rounds(grid, recipe, 3, repeat=1, state=state) < 60
