"""Updates of which only the sum can be read: the same model from one sum a round; refusals before a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.mean import MODEL, WeightedTensors
from fedvision.errors import ConfigError, PluginError, TooFewUpdates
from fedvision.flower.train_reply import TrainReply
from fedvision.server.summed_updates import sum_replies
from fedvision.server.update_validator import UpdateValidator
from fedvision.types import ClientUpdate, State
from fedvision.updates.chain import UpdateChain
from fedvision.updates.clip import Clip
from fedvision.updates.float16 import Float16
from fedvision.updates.schema import UpdateSchema
from fedvision.updates.top_k import TopK
from tests.experiments import tiny
from tests.updates.summed import MaskedSum

MASKED = {"use": "tests.updates.summed:MaskedSum", "clients": 5}
RECEIVED: State = {"w": torch.tensor([1.0, 2.0])}
RNG = np.random.default_rng(0)


class RootWeights(FedAvg):
    """Weighs updates by the root of their images, of which no sum over all images knows."""

    def contribute(self, state: State, update: ClientUpdate) -> dict[str, WeightedTensors]:
        return {MODEL: WeightedTensors(state=update.state, weight=update.examples**0.5)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [{"use": "fedavg"}, {"use": "fedprox", "mu": 0.1}, {"use": "fedadam", "server_lr": 0.1}]
)
def test_a_run_on_sums_is_that_on_single_updates(strategy: dict[str, Any], tmp_path: Path) -> None:
    MaskedSum.decoded.clear()
    clip = {"use": "clip", "max_norm": 0.5}
    plain = simulate(tiny(strategy=strategy, update=[clip]), out=tmp_path / "plain")
    summed = simulate(tiny(strategy=strategy, update=[clip, MASKED]), out=tmp_path / "summed")
    for name, tensor in plain.state.items():
        torch.testing.assert_close(summed.state[name], tensor, rtol=1e-4, atol=1e-4)
    assert len(MaskedSum.decoded) == 3, "one sum a round is read, and no update"
    for mine, other in zip(summed.rounds, plain.rounds, strict=True):
        assert (mine["clients"], mine["examples"]) == (other["clients"], other["examples"])
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert mine["bytes"]["up"] == 2 * mine["bytes"]["up_whole"], "8 bytes a number instead of 4"


def chain(*transforms: Any) -> UpdateChain:
    return UpdateChain(UpdateSchema.of(RECEIVED), transforms, list(RECEIVED))


def replies(updates: UpdateChain, *changes: tuple[list[float], int]) -> list[TrainReply]:
    found = []
    for client, (change, examples) in enumerate(changes):
        trained = {"w": RECEIVED["w"] + torch.tensor(change)}
        sent, _ = updates.encode(trained, RECEIVED, {}, RNG, examples)
        found.append(TrainReply(client=client, examples=examples, loss=float(client), state=sent))
    return found


def test_the_sum_is_the_mean_weighted_by_images() -> None:
    """(3 (1, 0) + 1 (-1, 4)) / 4 = (0.5, 1), on (1, 2)."""
    updates = chain(MaskedSum(clients=2))
    both = replies(updates, ([1.0, 0.0], 3), ([-1.0, 4.0], 1))
    assert (both[0].state or {})["w"].abs().max() > 2**40, "an update alone shows nothing"
    (one,) = sum_replies(both, UpdateValidator(RECEIVED, updates=updates), 2)
    assert (one.examples, one.loss) == (4, 0.25)
    assert (one.state or {})["w"].tolist() == [1.5, 3.0]


@pytest.mark.parametrize("losses", [(float("inf"), -float("inf")), (1e308, 1e308)])
def test_losses_that_have_no_sum_end_no_round(losses: tuple[float, float]) -> None:
    updates = chain(MaskedSum(clients=2))
    both = replies(updates, ([1.0, 0.0], 3), ([-1.0, 4.0], 1))
    for reply, loss in zip(both, losses, strict=True):
        reply.loss = loss
    (one,) = sum_replies(both, UpdateValidator(RECEIVED, updates=updates), 2)
    assert not math.isfinite(one.loss)
    assert (one.state or {})["w"].tolist() == [1.5, 3.0]


def test_a_round_without_one_of_its_clients_has_no_sum() -> None:
    updates = chain(MaskedSum(clients=2))
    validator = UpdateValidator(RECEIVED, updates=updates)
    some = replies(updates, ([1.0, 0.0], 3), ([-1.0, 4.0], 1))[:1]
    with pytest.raises(TooFewUpdates, match="only the sum of all 2 updates can be read, and 1 of them came"):
        list(sum_replies(some, validator, 2))
    assert list(sum_replies([], validator, 2)) == []


def test_a_sum_in_which_masks_are_left_is_not_used() -> None:
    updates = chain(MaskedSum(clients=2))
    one, _ = replies(updates, ([1.0, 0.0], 3), ([-1.0, 4.0], 1))
    with pytest.raises(TooFewUpdates, match=r"the norm of its change is .* above the bound of 10"):
        list(sum_replies([one, one], UpdateValidator(RECEIVED, 10.0, updates), 2))


def test_only_linear_transforms_may_come_before() -> None:
    chain(Clip(max_norm=1.0), MaskedSum(clients=2))
    for transform, name in ((TopK(fraction=0.5), "TopK"), (Float16(), "Float16")):
        with pytest.raises(
            ValueError, match=f"what {name} makes of updates cannot be decoded from their sum"
        ):
            chain(transform, MaskedSum(clients=2))
        with pytest.raises(ValueError, match=f"{name} would change what MaskedSum sends.* the last one"):
            chain(MaskedSum(clients=2), transform)


def test_a_sum_of_floats_is_refused() -> None:
    class Floats(Clip):
        sum_only = True

    with pytest.raises(ValueError, match="that of the floats 'w' depends on the order"):
        chain(Floats(max_norm=1.0))


def test_tensors_that_would_be_sent_beside_the_sum_are_refused() -> None:
    model = {"use": "resnet8", "norm": "batch"}
    with pytest.raises(PluginError, match=r"running_mean', which is not trained, would be sent as it is"):
        simulate(tiny(update=[MASKED], model=model))


@pytest.mark.parametrize(
    "strategy",
    [
        {"use": "median"},
        {"use": "scaffold"},
        {"use": f"{__name__}:RootWeights"},
        {"use": "flwr.serverapp.strategy:FedAvg"},
    ],
)
def test_strategies_that_need_more_than_the_mean_are_refused(strategy: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs more than their mean; use fedavg"):
        simulate(tiny(update=[MASKED], strategy=strategy))


@pytest.mark.parametrize("table", [{"late": "next-round", "deadline": 5.0}, {"buffer": 2}])
def test_late_updates_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a late one belongs to no sum"):
        simulate(tiny(update=[MASKED], round=table))
