"""Stock strategies that add noise for privacy: who knows the experiment cannot take it off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp import strategy as stock

from fedvision import seeding, simulate
from fedvision.errors import PluginError
from fedvision.experiment import Experiment
from fedvision.flower.strategy import build_strategy
from fedvision.types import PluginSpec, State
from tests.experiments import tiny

STOCK = "flwr.serverapp.strategy:"


def wrapped(noise_multiplier: float, **privacy: Any) -> Any:
    strategy = {
        "use": STOCK + "DifferentialPrivacyServerSideFixedClipping",
        "strategy": {"use": STOCK + "FedAvg", "fraction_evaluate": 0.0},
        "noise_multiplier": noise_multiplier,
        "clipping_norm": 10.0,
        "num_sampled_clients": 5,
    }
    return tiny(rounds=1, strategy=strategy, privacy=privacy)


def without_seeds_noise(state: State, seed: int) -> State:
    """Return a model after round 1 less the noise that whoever knows the seed can draw."""
    with seeding.stock_globals(seed, "combine", 1):
        return {
            name: tensor - torch.from_numpy(np.random.normal(0, 2.0, tensor.shape))  # noqa: NPY002
            for name, tensor in state.items()
        }


def distance(one: State, other: State) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(("noise", "hidden"), [("secret", True), ("reproducible", False)])
def test_noise_from_the_seed_takes_no_secret_noise_off(noise: str, hidden: bool, tmp_path: Path) -> None:
    """Standard deviation of the noise: 1 x 10 / 5 = 2 in each of 1,000 numbers and more."""
    clean = simulate(wrapped(0.0), out=tmp_path / "clean").state
    noisy = simulate(wrapped(1.0, noise=noise), out=tmp_path / "noisy").state
    assert distance(noisy, clean) > 4
    left = distance(without_seeds_noise(noisy, wrapped(1.0).seed), clean)
    assert left > 4 if hidden else left < 1e-5


def test_secret_noise_differs_from_run_to_run(tmp_path: Path) -> None:
    one, other = (simulate(wrapped(1.0), out=tmp_path / name).state for name in ("one", "other"))
    assert distance(one, other) > 4


def test_reproducible_noise_is_told_at_the_start() -> None:
    (notice,) = [n for n in Experiment.build(wrapped(1.0, noise="reproducible")).notices() if "noise" in n]
    assert notice.endswith("the model is NOT private")
    assert not any("noise" in n for n in Experiment.build(wrapped(1.0)).notices())


@pytest.mark.parametrize("kind", ["Fixed", "Adaptive"])
@pytest.mark.parametrize("outer", [False, True])
def test_clipping_by_clients_is_refused(kind: str, outer: bool) -> None:
    table: dict[str, Any] = {
        "strategy": {"use": STOCK + "FedAvg"},
        "noise_multiplier": 0.1,
        "num_sampled_clients": 4,
    }
    table |= {"clipping_norm": 1.0} if kind == "Fixed" else {}
    use = f"{STOCK}DifferentialPrivacyClientSide{kind}Clipping"
    if outer:
        inner = {"use": use, **table}
        table = {"strategy": inner, "noise_multiplier": 1.0, "clipping_norm": 1.0, "num_sampled_clients": 4}
        use = f"{STOCK}DifferentialPrivacyServerSideFixedClipping"
    with pytest.raises(PluginError, match=f"there would be no privacy; use .*ServerSide{kind}Clipping"):
        build_strategy(PluginSpec(use=use, args=table), seed=0)


def test_every_wrapper_of_flower_that_needs_clients_to_clip_is_known() -> None:
    """A release of Flower with a further one makes this fail."""
    names = {name for name in stock.__all__ if "DifferentialPrivacy" in name}
    assert names == {
        f"DifferentialPrivacy{side}Side{kind}Clipping"
        for side in ("Client", "Server")
        for kind in ("Fixed", "Adaptive")
    }
