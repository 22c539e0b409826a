"""FedRep: which parameters move in which pass, by hand and in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedrep import FedRep, FedRepClient
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.models.state import get_state, load_state
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.loop import fit
from fedvision.types import ClientConfig, State, TrainRequest
from tests.experiments import tiny
from tests.test_simulation import same
from tests.training.client_cases import Cohort, make_shards, network, settings

HEAD = ("head.weight", "head.bias")


def request(model: nn.Module, **numbers: float) -> TrainRequest:
    names = [name for name in model.state_dict() if name not in HEAD]
    return TrainRequest(
        round=2, client=3, state=get_state(model, names), client_config=ClientConfig(numbers=numbers)
    )


def trained(model: nn.Module, algorithm: ClientAlgorithm, epochs: int = 1, **options: Any) -> Any:
    loss = Cohort().build_loss(torch.ones(4))
    setting = settings(epochs=epochs, **options)
    return fit(
        model,
        make_shards()[2],
        request(model, head_epochs=2),
        loss=loss,
        algorithm=algorithm,
        settings=setting,
    )


class HeadAlone(FedRepClient):
    """Its first pass."""

    def passes(self) -> Any:
        return super().passes()[:1]


class RepresentationAlone(FedRepClient):
    """Its second pass."""

    def passes(self) -> Any:
        return super().passes()[1:]


def test_the_head_moves_first_and_then_the_representation_with_the_head_fixed() -> None:
    start = network().state_dict()
    model = network()
    first = trained(model, HeadAlone())
    assert same(first.state, {name: start[name] for name in first.state}), "the representation moved"
    assert not torch.equal(first.personal["head.weight"], start["head.weight"])
    assert first.steps == 2 * 3  # 23 images in batches of 8
    # The second pass goes on from that head, and leaves it.
    second = trained(model, RepresentationAlone())
    assert same(second.personal, first.personal)
    assert second.steps == 3
    both = trained(network(), FedRepClient())
    assert same(both.state, second.state)
    assert same(both.personal, first.personal)
    assert both.steps == 9
    # Both passes' images are in the loss: 46 of the head's pass and 23 of the other.
    assert both.loss == pytest.approx((2 * first.loss + second.loss) / 3, rel=1e-5)


def test_the_second_pass_is_fedavg_with_a_frozen_head_to_the_bit() -> None:
    model, frozen = network(), network(frozen=("head.*",))
    found = trained(model, RepresentationAlone(), momentum=0.9)
    wanted = trained(frozen, ClientAlgorithm(), momentum=0.9)
    assert same(found.state, wanted.state)
    assert found.loss == wanted.loss


def test_the_head_pass_by_hand() -> None:
    """One step on one batch of all images: the head moves by the gradient at the representation as sent."""
    model = network()
    result = fit(
        model,
        make_shards()[0],
        request(model, head_epochs=1),
        loss=Cohort().build_loss(torch.ones(4)),
        algorithm=HeadAlone(),
        settings=settings(lr=0.5),
    )
    twin, shard = network().train(), make_shards()[0]
    x, labels = settings().forward.batch(shard, torch.arange(5).numpy())
    nn.functional.cross_entropy(twin(x), labels).backward()
    for name in HEAD:
        p = dict(twin.named_parameters())[name]
        torch.testing.assert_close(result.personal[name], p.detach() - 0.5 * p.grad, rtol=1e-5, atol=1e-6)


def test_gradients_are_on_again_after_a_round_also_one_that_failed() -> None:
    model = network()
    trained(model, FedRepClient())
    assert all(p.requires_grad for p in model.parameters())

    class Failing(FedRepClient):
        def after_backward(self) -> None:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        trained(model, Failing())
    assert all(p.requires_grad for p in model.parameters())


def test_the_passes_draw_other_batches() -> None:
    """With the same learning rate and model, equal batches would give the passes equal losses."""
    losses = []
    for kind in (HeadAlone, RepresentationAlone):
        model = network()
        shard = make_shards()[2]
        task = request(model, head_epochs=1)
        loss = Cohort().build_loss(torch.ones(4))
        found = fit(model, shard, task, loss=loss, algorithm=kind(), settings=settings(lr=1e-12, steps=1))
        losses.append(found.loss)
    assert losses[0] != losses[1]


def test_the_number_is_needed() -> None:
    model = network()
    with pytest.raises(ClientError, match="client 3, training: FedRep got no number 'head_epochs'"):
        FedRepClient().begin(model, dict(model.named_parameters()), request(model), {})


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"use": "resnet8", "norm": "batch", "width": 4, "personal": ["*.running_mean"]}, "train a head"),
        ({"use": "resnet8", "norm": "batch", "width": 4, "personal": ["*.weight", "*.bias"]}, "averages"),
    ],
)
def test_a_network_in_which_a_pass_trains_nothing_is_refused(model: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"use = 'fedrep' .*{sentence}.*set model\.personal"):
        Experiment.build(tiny(strategy={"use": "fedrep"}, model=model))


def test_the_head_is_personal_where_nothing_is_named() -> None:
    assert FedRep().personal(()) == ("head.*",)
    assert FedRep().personal(("backbone.dense.*",)) == ("backbone.dense.*",)
    assert FedRep.combine is FedAvg.combine
    config = tiny(strategy={"use": "fedrep"})
    assert Experiment.build(config).config.model.personal == ("head.*",)


def test_clients_train_one_by_one_on_the_vectorized_engine(tmp_path: Path) -> None:
    config = tiny(rounds=2, strategy={"use": "fedrep", "head_epochs": 2}, evaluation={"holdout": 0.2})
    serial, stacked = (simulate(config, engine=use, out=tmp_path / use) for use in ("serial", "vectorized"))
    assert same(serial.state, stacked.state)
    assert serial.rounds == stacked.rounds
    notices = stacked.folder.summary()["notices"]
    assert any("FedRepClient trains in passes of its own" in notice for notice in notices)


def heads(run: Path) -> list[State]:
    from tests.test_personal import heads as kept

    return kept(run)


def test_a_run_that_is_cut_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_simulation import stopping_after

    config = tiny(strategy={"use": "fedrep", "head_epochs": 1}, evaluation={"holdout": 0.2})
    whole = simulate(config, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, out=tmp_path / "cut")
    assert same(whole.state, simulate(config, out=tmp_path / "cut", resume=True).state)
    both = zip(heads(tmp_path / "whole"), heads(tmp_path / "cut"), strict=True)
    assert all(same(one, other) for one, other in both)


def test_load_state_is_what_a_client_recalls() -> None:
    """The client's own head is in the network when the passes begin, not the first one."""
    model = network()
    own = {name: torch.full_like(model.state_dict()[name], 0.01) for name in HEAD}
    load_state(model, own)
    found = trained(model, RepresentationAlone())
    assert same(found.personal, own)
