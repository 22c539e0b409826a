"""FedGAN: how many images are generated, what they do to the loss, and networks that are averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedvision import simulate
from fedvision.algorithms.fedgan import FedGAN, FedGANClient, images_to_fill
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.errors import ClientError, ConfigError, RunError
from fedvision.experiment import Experiment
from fedvision.types import ClientConfig, ClientUpdate, State, TrainRequest
from tests.experiments import digits_of_several_labels, several_labels, tiny

CLASSES, SIDE = 10, 8
SMALL: dict[str, Any] = {"use": "fedgan", "maps": 4, "noise": 4, "warmup": 1}


def strategy(**arguments: Any) -> FedGAN:
    """Return the strategy as it begins an experiment on digits."""
    own = FedGAN(**{name: value for name, value in (SMALL | arguments).items() if name != "use"})
    own.check(tiny(), [str(digit) for digit in range(CLASSES)], (SIDE, SIDE, 1))
    return own


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))


def configured(own: FedGAN, round: int) -> ClientConfig:
    return replace(own.configure(round, {}, 0), constants=own.constant_tensors())


def begun(
    counts: tuple[int, ...],
    *,
    round: int = 2,
    known: tuple[int, ...] | None = None,
    memory: State | None = None,
    **arguments: Any,
) -> tuple[FedGANClient, nn.Module]:
    """Return a client half that has begun a round, and the network that it trains."""
    model, own, half = network(), strategy(**arguments), FedGANClient()
    state = dict(model.state_dict())
    sent = configured(own, round)
    request = TrainRequest(
        round=round, client=0, state=state, client_config=sent, own_counts=counts, counts=known
    )
    half.begin(model, dict(model.named_parameters()), request, memory or {})
    half.generator = torch.Generator().manual_seed(5)
    return half, model


def batch(labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(labels), 1, SIDE, SIDE, generator=generator), torch.tensor(labels)


def task_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def test_images_to_fill_by_hand() -> None:
    """Half of the largest class's 10 images; a class that the client lacks only where somebody has it."""
    counts = torch.tensor([10.0, 8.0, 2.0, 0.0, 0.0])
    assert images_to_fill(counts, None, 0.5).tolist() == [0, 0, 3, 0, 0]
    known = torch.tensor([90.0, 9.0, 9.0, 9.0, 0.0])
    assert images_to_fill(counts, known, 0.5).tolist() == [0, 0, 3, 5, 0]
    assert images_to_fill(counts, known, 1.0).tolist() == [0, 2, 8, 10, 0]
    assert images_to_fill(counts, known, 0.0).tolist() == [0] * 5


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=8), st.floats(0, 1), st.booleans(), st.integers(0, 255)
)
def test_no_class_is_filled_that_nobody_has(
    counts: list[int], share: float, known: bool, others: int
) -> None:
    own = torch.tensor(counts, dtype=torch.float64)
    federation = own + torch.tensor([(others >> k) & 1 for k in range(len(counts))]) if known else None
    fill = images_to_fill(own, federation, share)
    assert bool(torch.isfinite(fill).all())
    assert bool((fill >= 0).all())
    assert bool((fill + own <= torch.maximum(own, share * own.max()) + 1e-9).all())
    assert not fill[(own if federation is None else federation) == 0].any()


def test_the_loss_is_the_mean_over_real_and_generated_images() -> None:
    """Five of six classes hold one image where the largest has 15: the batch of 20 gets 35 to fill 1.0."""
    half, model = begun((15, 1, 1, 1, 1, 1, *[0] * 4), share=1.0)
    x, labels = batch([0] * 15 + [1, 2, 3, 4, 5])
    seen: list[tuple[int, ...]] = []

    def spied(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        losses = task_loss(logits, own)
        seen.append((len(own), float(losses.sum().detach())))
        if len(seen) == 2:
            assert set(own.tolist()) <= {1, 2, 3, 4, 5}, "a class that is full or unknown was filled"
        return losses

    found = half.loss(model, x, labels, spied)
    assert found.shape == (20,)
    assert [row[0] for row in seen] == [20, 70]
    assert float(found.mean().detach()) == pytest.approx((seen[0][1] + seen[1][1]) / 90, rel=1e-5)


@pytest.mark.parametrize(("round", "share"), [(1, 0.5), (2, 0.0)])
def test_before_the_end_of_the_warm_up_the_loss_is_the_tasks(round: int, share: float) -> None:
    half, model = begun((15, 1, 1, 1, 1, 1, *[0] * 4), round=round, share=share)
    x, labels = batch([0] * 15 + [1, 2, 3, 4, 5])
    assert torch.equal(half.loss(model, x, labels, task_loss), task_loss(model(x), labels))


def test_a_step_moves_both_networks_and_not_the_classifier() -> None:
    half, model = begun((4, 4, *[0] * 8), share=0.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    half.loss(model, *batch([0, 1, 0, 1]), task_loss)
    groups, memory = half.finish(1, 0.1)
    own = strategy()
    first = own.constant_tensors()["discriminator"]
    assert groups.keys() == {"generator"}, "the discriminator is never sent"
    assert any(not torch.equal(groups["generator"][key], tensor) for key, tensor in own.generator.items())
    assert any(not torch.equal(memory[key], tensor) for key, tensor in first.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_discriminator_learns_to_tell_real_images() -> None:
    """White images are real: with many steps it prefers them to what an untrained generator makes."""
    half, model = begun((16, *[0] * 9), gan_steps=30, gan_lr=0.002)
    half.loss(
        model, half._shift + 255 * half._scale.expand(16, 1, SIDE, SIDE), torch.zeros(16).long(), task_loss
    )
    labels = torch.zeros(16, dtype=torch.int64)
    white, black = torch.ones(16, 1, SIDE, SIDE), torch.zeros(16, 1, SIDE, SIDE)
    judged = half._discriminator(white, labels).mean(), half._discriminator(black, labels).mean()
    assert judged[0] > judged[1]


def test_a_gan_that_is_not_finite_is_not_sent_and_generates_nothing() -> None:
    half, model = begun((8, 1, *[0] * 8), share=1.0)
    with torch.no_grad():
        half._generator.last.bias.fill_(float("nan"))
    x, labels = batch([0] * 8 + [1])
    assert torch.isfinite(half.loss(model, x, labels, task_loss)).all()
    groups, memory = half.finish(1, 0.1)
    own = strategy()
    assert all(torch.equal(groups["generator"][key], tensor) for key, tensor in own.generator.items())
    first = own.constant_tensors()["discriminator"]
    assert all(torch.equal(memory[key], tensor) for key, tensor in first.items())


def test_a_client_goes_on_with_its_own_discriminator() -> None:
    kept = {name: tensor + 1 for name, tensor in strategy().constant_tensors()["discriminator"].items()}
    half, _ = begun((4, *[0] * 9), memory=kept)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in half._discriminator.state_dict().items())


def test_a_request_that_lacks_something_is_refused() -> None:
    model, own = network(), strategy()
    state = dict(model.state_dict())
    sent = configured(own, 1)
    good = TrainRequest(round=1, client=4, state=state, client_config=sent, own_counts=(1,) * CLASSES)
    broken = {name: dict(tensors) for name, tensors in sent.tensors.items()}
    broken["generator"] = {"w": torch.ones(1)}
    for request, message in (
        (replace(good, own_counts=None), "no class counts"),
        (replace(good, client_config=replace(sent, tensors={})), "no networks"),
        (replace(good, client_config=replace(sent, constants={})), "no networks"),
        (replace(good, client_config=replace(sent, numbers={})), "no number 'share'"),
        (replace(good, client_config=replace(sent, tensors=broken)), "do not have the shape"),
    ):
        with pytest.raises(ClientError, match=message):
            FedGANClient().begin(model, {}, request, {})


def test_generators_are_averaged_by_images() -> None:
    own, state = strategy(), {"w": torch.zeros(1)}
    updates = []
    for place, (value, examples) in enumerate(((0.0, 1), (4.0, 3))):
        groups = {"generator": {key: torch.full_like(tensor, value) for key, tensor in own.generator.items()}}
        updates.append(
            ClientUpdate(client=place, position=place, examples=examples, state=state, tensors=groups)
        )
    own.combine(state, iter(updates))
    assert all(bool((tensor == 3.0).all()) for tensor in own.generator.values())


@pytest.mark.parametrize("tensors", [{}, {"generator": {"w": torch.ones(1)}}])
def test_networks_of_another_form_are_named(tensors: dict[str, Any]) -> None:
    update = ClientUpdate(client=7, position=0, examples=1, state={}, tensors=tensors)
    with pytest.raises(RunError, match="client 7 sent no generator of the experiment's form"):
        strategy().combine({}, iter([update]))


@pytest.mark.slow
def test_without_filling_the_model_is_fedavgs_to_the_bit(tmp_path: Path) -> None:
    plain = simulate(tiny(rounds=2), out=tmp_path / "fedavg")
    found = simulate(tiny(rounds=2, strategy=SMALL | {"share": 0.0}), out=tmp_path / "fedgan")
    filled = simulate(tiny(rounds=2, strategy=SMALL | {"share": 1.0}), out=tmp_path / "filled")
    assert all(torch.equal(tensor, found.state[name]) for name, tensor in plain.state.items())
    assert any(not torch.equal(tensor, filled.state[name]) for name, tensor in plain.state.items())


def test_what_does_not_fit_is_refused_before_the_run(tmp_path: Path) -> None:
    labels = several_labels(digits_of_several_labels(tmp_path))
    for tables, message in (
        ({"transforms": {"mixup": 0.2}}, r"set transforms\.mixup = 0"),
        ({"transforms": {"size": 3}}, "4 x 4 pixels or more"),
        (labels, "needs one label an image"),
    ):
        with pytest.raises(ConfigError, match=message):
            Experiment.build(tiny(strategy=SMALL, **tables))
    with pytest.raises(ConfigError, match="maps must be a multiple of 4, not 6"):
        Experiment.build(tiny(strategy=SMALL | {"maps": 6}))


@pytest.mark.parametrize("generators", [False, True])
def test_an_owner_who_allows_no_generator_takes_no_part(generators: bool) -> None:
    tables = {
        "name": "one",
        "superlink": {"address": "127.0.0.1:1", "insecure": True, "key": "client.key"},
        "data": {"use": "digits"},
        "share": {"generators": generators},
    }
    client = ClientMachineConfig.from_dict(tables)
    if generators:
        client.permit_algorithm("fedgan", ())
    else:
        with pytest.raises(ConfigError, match=r"set share\.generators = true in the client's file"):
            client.permit_algorithm("fedgan", ())
