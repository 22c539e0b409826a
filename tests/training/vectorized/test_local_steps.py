"""Clients trained at once against the serial loop: every model, loss, algorithm and optimiser that stacks."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fedvision.config import TransformConfig
from fedvision.errors import ClientError, ConfigError
from fedvision.models.freezing import frozen_state
from fedvision.models.state import get_state, personal_names, shared_names
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.vectorized.client_stack import clip_each
from fedvision.training.vectorized.vmap_support import ELEMENTWISE
from fedvision.types import ClientConfig, PluginSpec, TrainRequest
from tests.methods import NETWORKS
from tests.training.client_cases import (
    LOSSES,
    SIZES,
    STACKABLE,
    Cohort,
    algorithm_case,
    assert_equal,
    assert_near,
    make_shards,
    network,
    noise,
    settings,
)

LONG = {"epochs": 3, "momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0.5}


def check(cohort: Cohort, *chunks: int) -> None:
    assert cohort.unsupported_reason() is None
    wanted = cohort.one_by_one()
    for chunk in chunks or (0,):
        assert_equal(cohort.at_once(chunk), wanted)


@pytest.mark.parametrize("use", NETWORKS)
def test_every_model_that_stacks_gives_what_the_loop_gives(use: str) -> None:
    cohort = Cohort(model=network(use), settings=settings(epochs=2, momentum=0.9))
    if use == "rnn":
        assert (
            cohort.unsupported_reason()
            == "torch's recurrent layers (backbone.features.recurrent) have no stacked form"
        )
    else:
        check(cohort)


@pytest.mark.parametrize("use", LOSSES)
def test_every_loss_sees_each_clients_own_counts(use: str) -> None:
    check(Cohort(loss=PluginSpec(use=use), settings=settings(epochs=2)), 0, 2)


@pytest.mark.parametrize("use", STACKABLE)
@pytest.mark.parametrize("training", [{}, LONG], ids=["plain", "long"])
def test_every_algorithm_adjusts_each_clients_own_gradients(use: str, training: dict[str, Any]) -> None:
    model = network()
    state = get_state(model, shared_names(model, "all"))
    check(
        Cohort(model=model, algorithm=use, settings=settings(**training), **algorithm_case(use, state)), 0, 2
    )


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: f"{kind.__module__}:{kind.__name__}")
def test_declared_elementwise_optimisers_are_elementwise(kind: type) -> None:
    use = f"{kind.__module__}:{kind.__name__}"
    # Where a gradient is 0 but for the order of sums, a small eps would make a step of the rounding error.
    args = {"eps": 1e-3} if "eps" in inspect.signature(kind).parameters else {}
    chosen = settings(optimizer=PluginSpec(use=use, args=args), lr=0.01, epochs=3, weight_decay=0.01)
    if kind.__name__ == "Rprop":  # it has no weight decay
        chosen = settings(optimizer=PluginSpec(use=use), lr=0.001, epochs=3)
    # The sign of a gradient decides in the first steps of some: where it is 0 but for the order of sums, the
    # two ways part. A smooth network has none of these.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 4))
    check(Cohort(model=model, settings=chosen))


@pytest.mark.parametrize(
    "training",
    [LONG, {"steps": 7}, {"steps": 1}, {"batch_size": 64}, {"batch_size": 1}, {"channels_last": False}],
    ids=str,
)
def test_epochs_steps_and_batches_are_those_of_the_loop(training: dict[str, Any]) -> None:
    check(Cohort(settings=settings(**training)), 0, 2)


def test_augmentation_comes_from_each_clients_own_stream() -> None:
    transforms = TransformConfig(flip=True, crop=2, rotation=20.0, cutout=3)
    cohort = Cohort(settings=settings(transforms, epochs=2))
    check(cohort, 0, 2)
    plain = Cohort(settings=settings(epochs=2)).at_once()
    assert not torch.equal(plain[2].state["head.weight"], cohort.at_once()[2].state["head.weight"])


def test_images_are_resized_as_in_the_loop() -> None:
    transforms = TransformConfig(size=12, interpolation="bicubic", crop=2, cutout=5)
    cohort = Cohort(model=network("resnet8"), settings=settings(transforms, epochs=2))
    check(cohort, 0, 2)
    plain = Cohort(model=network("resnet8"), settings=settings(TransformConfig(crop=2), epochs=2)).at_once()
    assert not torch.equal(plain[2].state["head.weight"], cohort.at_once()[2].state["head.weight"])


def test_a_frozen_part_neither_moves_nor_travels_nor_is_kept() -> None:
    cohort = Cohort(model=network("fusion", frozen=("backbone.extractor.*",), dropout=0.0))
    check(cohort, 0, 2)
    updates, before = cohort.at_once(), frozen_state(cohort.model)
    cohort.one_by_one()
    assert len(before) == 6
    assert all(torch.equal(tensor, frozen_state(cohort.model)[name]) for name, tensor in before.items())
    assert not any(before.keys() & (update.state.keys() | update.personal.keys()) for update in updates)


@pytest.mark.parametrize("shared", ["all", "trainable"])
def test_an_untrained_part_that_stays_at_home_is_each_clients_own(shared: str) -> None:
    model = network("fusion", dropout=0.0)
    model.get_submodule("backbone.extractor").requires_grad_(False)
    cohort = Cohort(model=model, shared=shared)
    if shared == "trainable":
        home = get_state(model, personal_names(model, shared_names(model, "trainable")))
        assert home
        shift = [{n: t + 0.01 * k for n, t in home.items()} for k in range(len(SIZES))]
        cohort = replace(cohort, personals=shift)
    check(cohort, 0, 2)


def test_personal_tensors_over_rounds() -> None:
    """Trained tensors that stay at home begin and end as each client's own."""
    model = network()
    cohort = Cohort(model=model, settings=settings(epochs=2))
    names = [name for name in shared_names(model, "all") if not name.startswith("head")]
    requests = [replace(request, state={n: request.state[n] for n in names}) for request in cohort.requests()]
    cohort.requests = lambda: requests  # type: ignore[method-assign]
    home = get_state(model, ("head.weight", "head.bias"))
    cohort.personals = [{n: t + 0.1 * k for n, t in home.items()} for k in range(len(SIZES))]
    check(cohort)
    ends = [update.personal["head.bias"] for update in cohort.at_once()]
    assert len({tuple(end.tolist()) for end in ends}) == len(SIZES)


def test_a_parameter_without_gradient_is_left_alone_even_by_weight_decay() -> None:
    class Spare(nn.Module):
        """A linear network with a parameter that nothing uses."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 4)
            self.spare = nn.Parameter(torch.ones(3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.linear(images.flatten(1))
            return logits

    cohort = Cohort(model=Spare(), settings=settings(weight_decay=0.1, clip_norm=0.5))
    check(cohort)
    assert torch.equal(cohort.at_once()[0].state["spare"], torch.ones(3))
    prox = [ClientConfig(numbers={"mu": 1.0})] * len(SIZES)
    check(replace(cohort, algorithm="fedprox", client_configs=prox))


def test_bfloat16_agrees_with_the_loop_as_far_as_bfloat16_goes() -> None:
    cohort = Cohort(model=network(double=False), settings=settings(precision="bfloat16"))
    assert cohort.unsupported_reason() is None
    start = cohort.requests()[0].state
    plain = Cohort(model=network(double=False)).at_once()
    assert not torch.equal(cohort.at_once()[0].state["head.weight"], plain[0].state["head.weight"])
    assert_near(cohort.at_once(), cohort.one_by_one(), start, share=0.15)


def test_a_client_that_diverges_does_not_touch_its_neighbours() -> None:
    cohort = Cohort(settings=settings(clip_norm=0.5))
    requests = cohort.requests()
    poison = {name: torch.full_like(tensor, torch.nan) for name, tensor in requests[3].state.items()}
    requests[3] = replace(requests[3], state=poison)
    cohort.requests = lambda: requests  # type: ignore[method-assign]
    found = cohort.at_once()
    assert not torch.isfinite(found[3].state["head.weight"]).any()
    assert_equal(found, cohort.one_by_one())


def test_updates_share_no_memory() -> None:
    updates = Cohort().at_once()
    places = {update.state["head.weight"].untyped_storage().data_ptr() for update in updates}
    assert len(places) == len(SIZES)
    assert (
        updates[0].state["head.weight"].untyped_storage().nbytes() == updates[0].state["head.weight"].nbytes
    )


def test_the_model_is_not_moved() -> None:
    cohort = Cohort()
    before = get_state(cohort.model, shared_names(cohort.model, "all"))
    cohort.at_once()
    after = get_state(cohort.model, before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_clients_of_several_rounds_or_of_another_model_are_refused() -> None:
    cohort = Cohort()
    requests = cohort.requests()
    cohort.requests = lambda: [replace(requests[0], round=3), *requests[1:]]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="tasks of one round"):
        cohort.at_once()
    cohort.requests = lambda: [*requests[:4], replace(requests[4], state={"x": torch.ones(1)})]  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="no tensor 'x'"):
        cohort.at_once()


def test_an_algorithm_that_lacks_its_number_names_the_client() -> None:
    cohort = Cohort(algorithm="fedprox", client_configs=[ClientConfig()] * len(SIZES))
    with pytest.raises(ClientError, match="client 2, training"):
        cohort.at_once()


def test_clipping_is_torchs_for_each_client() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(3, *shape, generator=generator) for shape in [(4, 2), (5,), ()]]
    gradients[0][1] *= 1e-3
    gradients[1][1] *= 1e-3
    gradients[2][1] *= 1e-3
    wanted = []
    for k in range(3):
        parameters = [nn.Parameter(torch.zeros_like(g[k])) for g in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient[k].clone()
        nn.utils.clip_grad_norm_(parameters, 0.7)
        wanted.append([parameter.grad for parameter in parameters])
    clip_each([*gradients, None], 0.7)
    for k in range(3):
        for gradient, single in zip(gradients, wanted[k], strict=True):
            torch.testing.assert_close(gradient[k], single, rtol=1e-6, atol=0)


def test_one_client_alone_is_a_stack_too() -> None:
    cohort = Cohort(shards=make_shards((9,)))
    assert_equal(cohort.at_once(), cohort.one_by_one())


def test_one_call_of_an_algorithm_for_all_active_clients() -> None:
    stack_sizes = []

    class Watched(ClientAlgorithm):
        """Records its calls."""

        def begin(self, model: Any, parameters: Any, request: TrainRequest, memory: Any) -> None:
            self.parameters = parameters

        @staticmethod
        def correct_gradients(parameters: Any, groups: Any, numbers: Any) -> None:
            stack_sizes.append(len(parameters["head.bias"]))

    cohort = Cohort()
    cohort.algorithms = lambda: [Watched() for _ in SIZES]  # type: ignore[method-assign, assignment]
    cohort.at_once()
    # Batches of 8 of 5, 1, 23, 17, 16 images: no call after their last.
    assert stack_sizes == [5, 3, 2]


@pytest.mark.parametrize("use", ["sgd", "adam", "adamw", "rmsprop", "nadam"])
@pytest.mark.parametrize("algorithm", [None, "scaffold"])
def test_every_client_has_its_own_learning_rate(use: str, algorithm: str | None) -> None:
    factors = (1.0, 0.25, 3.0, 0.5, 2.0)
    state = get_state(network(), shared_names(network(), "all"))
    tensors = {"control": noise(state, 99)} if algorithm else {}
    cohort = Cohort(
        settings=settings(epochs=2, weight_decay=0.01, lr=0.01, optimizer=PluginSpec(use=use), clip_norm=0.5),
        algorithm=algorithm,
        client_configs=[ClientConfig(tensors=tensors, lr_factor=f) for f in factors],
    )
    check(cohort, 0, 2)
    shared = Cohort(settings=cohort.settings).one_by_one()
    own = cohort.one_by_one()
    if algorithm is None:
        assert torch.equal(own[0].state["head.weight"], shared[0].state["head.weight"])
        assert not torch.equal(own[2].state["head.weight"], shared[2].state["head.weight"])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_is_none_is_refused(factor: float) -> None:
    cohort = Cohort(client_configs=[ClientConfig(lr_factor=factor)] * len(SIZES))
    for train in (cohort.one_by_one, cohort.at_once):
        with pytest.raises(ClientError, match="the factor on its learning rate"):
            train()
