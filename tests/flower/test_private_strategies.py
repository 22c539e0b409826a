"""Stock strategies that add noise for privacy: who knows the experiment cannot take it off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as stock

from fedvision import seeding, simulate
from fedvision.errors import PluginError, RunError, TooFewUpdates
from fedvision.experiment import Experiment
from fedvision.flower import codec, internals
from fedvision.flower.private_strategies import counted_equally, zero_updates_unscaled
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
    with seeding.global_streams(seed, "combine", 1):
        return {
            name: tensor - torch.from_numpy(np.random.normal(0, 2.0, tensor.shape))  # noqa: NPY002
            for name, tensor in state.items()
        }


def distance(one: State, other: State) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
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


def test_notice_on_reproducible_noise() -> None:
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
    with pytest.raises(PluginError, match=r"there would be no privacy; use .*ServerSideFixedClipping"):
        build_strategy(PluginSpec(use=use, args=table), seed=0)


def replies(*updates: tuple[float, int]) -> list[Message]:
    """Return replies to a training message whose model is 0: a single number and the images behind it."""
    internals.identify(1)
    found = []
    for node, (value, examples) in enumerate(updates, 1):
        request = Message(RecordDict({"arrays": ArrayRecord([np.zeros(1)])}), node, "train")
        metrics = MetricRecord({"num-examples": examples, "train_loss": 1.0})
        content = RecordDict({"arrays": ArrayRecord([np.array([value])]), "metrics": metrics})
        found.append(Message(content, reply_to=request))
    return found


def fixed(**changes: Any) -> Any:
    use = f"{STOCK}DifferentialPrivacyServerSideFixedClipping"
    args = {"noise_multiplier": 0.0, "clipping_norm": 1.0, "num_sampled_clients": 4}
    args["strategy"] = {"use": STOCK + "FedAvg"}
    return build_strategy(PluginSpec(use=use, args=args | changes), seed=0)


def test_no_client_moves_the_mean_by_more_than_the_noise_is_scaled_to() -> None:
    """The client with 970 of 1,000 images moved the weighted mean by 0.97 under a noise for 1 / 4."""
    strategy = fixed()
    strategy.current_arrays = ArrayRecord([np.zeros(1)])
    came = counted_equally(strategy, iter(replies((100.0, 970), (-0.5, 10), (-0.5, 10), (0.25, 10))))
    arrays, _ = strategy.aggregate_train(1, came)
    assert arrays.to_numpy_ndarrays()[0].tolist() == [(1.0 - 0.5 - 0.5 + 0.25) / 4]


def test_an_update_that_changes_nothing_is_not_scaled() -> None:
    """Flower divides the bound by the norm of the change, which is 0 here, and clips the others as before."""
    strategy = fixed()
    strategy.current_arrays = ArrayRecord([np.zeros(1)])
    came = counted_equally(strategy, iter(replies((0.0, 10), (0.0, 10), (-0.5, 10), (4.0, 10))))
    with zero_updates_unscaled(strategy):
        arrays, _ = strategy.aggregate_train(1, came)
    assert arrays.to_numpy_ndarrays()[0].tolist() == [(0.0 + 0.0 - 0.5 + 1.0) / 4]
    assert type(strategy.clipping_norm) is float, "a checkpoint has plain numbers"


def test_a_run_in_which_no_client_changes_anything_goes_on(tmp_path: Path) -> None:
    config = wrapped(0.0, noise="reproducible")
    found = simulate(replace(config, training=replace(config.training, lr=1e-30)), out=tmp_path / "run")
    assert [record["changed"] for record in found.rounds] == [True]


def test_replies_for_other_strategies_keep_their_images() -> None:
    other = build_strategy(PluginSpec(use=STOCK + "FedAvg"), seed=0)
    (reply,) = counted_equally(other, iter(replies((1.0, 970))))
    assert reply.content.metric_records[codec.METRICS][codec.EXAMPLES] == 970


def test_a_round_with_fewer_updates_than_the_noise_is_for_fails(tmp_path: Path) -> None:
    with pytest.raises(TooFewUpdates, match=r"scaled to the 4 updates .* but 3 came"):
        list(counted_equally(fixed(), iter(replies((1.0, 1), (1.0, 1), (1.0, 1)))))
    config = wrapped(0.0)
    config.strategy.args["num_sampled_clients"] = 6  # type: ignore[index]
    with pytest.raises(RunError, match=r"the noise is scaled to the 6 updates .* but 5 came"):
        simulate(config, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("inner", "name"),
    [
        ({"use": STOCK + "FedAdam"}, "FedAdam"),
        ({"use": STOCK + "FedMedian"}, "FedMedian"),
        ({"use": STOCK + "FedAvg", "weighted_by_key": "train_loss"}, "FedAvg"),
        ({"use": "fedavg"}, "FedAvg"),
    ],
)
def test_noise_for_a_mean_is_added_to_nothing_else(inner: dict[str, Any], name: str) -> None:
    with pytest.raises(PluginError, match=f"scales its noise to a plain mean of updates, and {name} gives"):
        fixed(strategy=inner)


def test_the_noise_of_adaptive_clipping_is_of_another_rounds_bound() -> None:
    """Fails with a release of Flower that mends it; then it need not be refused any more."""
    use = f"{STOCK}DifferentialPrivacyServerSideAdaptiveClipping"
    args = {"noise_multiplier": 0.1, "num_sampled_clients": 4, "strategy": {"use": STOCK + "FedAvg"}}
    with pytest.raises(PluginError, match="scales the noise to the next round's bound"):
        build_strategy(PluginSpec(use=use, args=args), seed=0)
    theirs = stock.DifferentialPrivacyServerSideAdaptiveClipping(
        stock.FedAvg(), 0.0, 4, initial_clipping_norm=1.0
    )
    theirs.current_arrays = ArrayRecord([np.zeros(1)])
    theirs.aggregate_train(1, replies(*[(100.0, 1)] * 4))
    assert theirs.clipping_norm == pytest.approx(np.exp(-0.1))  # All were clipped: it should have grown.


def test_every_wrapper_of_flower_that_needs_clients_to_clip_is_known() -> None:
    """A release of Flower with a further one makes this fail."""
    names = {name for name in stock.__all__ if "DifferentialPrivacy" in name}
    assert names == {
        f"DifferentialPrivacy{side}Side{kind}Clipping"
        for side in ("Client", "Server")
        for kind in ("Fixed", "Adaptive")
    }
