"""The custom strategy of simulations/custom-strategy: found beside its experiment, with one method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedvision import registry
from fedvision.algorithms.base import RoundStrategy
from fedvision.config import ExperimentConfig
from fedvision.types import ClientUpdate, PluginSpec

FOLDER = Path(__file__).parents[2] / "simulations" / "custom-strategy"


@pytest.fixture
def strategy() -> RoundStrategy:
    registry.allow_folder(FOLDER)
    config = ExperimentConfig.load(FOLDER / "experiment.toml")
    built: RoundStrategy = registry.build("strategy", config.strategy)
    return built


def test_weights_are_square_roots(strategy: RoundStrategy) -> None:
    updates = [
        ClientUpdate(client=place, position=place, examples=examples, state={"w": torch.tensor([value])})
        for place, (examples, value) in enumerate([(1, 0.0), (100, 11.0)])
    ]
    assert strategy.combine({"w": torch.zeros(1)}, iter(updates))["w"].tolist() == [10.0]


def test_it_has_one_method(strategy: RoundStrategy) -> None:
    assert [name for name, value in vars(type(strategy)).items() if callable(value)] == ["contribute"]


def test_the_readme_names_what_exists() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    root = FOLDER.parents[1]
    for path in ("simulations/custom-strategy/experiment.toml", "fedvision/algorithms/fedprox.py"):
        assert path in text
        assert (root / path).is_file()


def test_a_client_selected_again_has_a_smaller_rate() -> None:
    registry.allow_folder(FOLDER)
    spec = PluginSpec(use="own_rates:SlowerWhenFrequent", args={"fraction": 0.5})
    strategy: RoundStrategy = registry.build("strategy", spec)
    factors = [
        strategy.configure(round, {}, client).lr_factor for round, client in enumerate((3, 5, 3, 3, 3), 1)
    ]
    assert factors == [1.0, 1.0, 2**-0.5, 3**-0.5, 0.5]
