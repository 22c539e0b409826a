"""Steps that are played back against the serial loop.

A CUDA graph repeats the operations of a step at their addresses and runs no Python. A trace does the
same on the CPU: what is read from a tensor that is made anew each round, or decided by a number on the way,
would show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from fedvision import registry
from fedvision.config import TransformConfig
from fedvision.data.shards import Shard
from fedvision.models.state import get_state, personal_names, shared_names
from fedvision.training.client_algorithm import ClientAlgorithm, Groups, Numbers, along
from fedvision.training.vectorized.cuda_graph import CudaGraphRunner, recordable
from fedvision.training.vectorized.device_cache import DeviceDatasetCache
from fedvision.training.vectorized.graph_buffers import Replay
from fedvision.types import ClientConfig, PluginSpec, State, TrainRequest
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

LONG = {"epochs": 2, "momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0.5}


class Tracer:
    """Records a step's operations and counts what is recorded and played."""

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def __call__(self, step: Replay) -> Replay:
        self.recorded += 1
        traced: Callable[[], Any] = make_fx(lambda: step())()

        def play() -> None:
            self.played += 1
            with torch.no_grad():  # the backward pass is among what was traced
                traced()

        return play


SIZES_LATER = ((9, 30, 4, 1, 12), (23, 17))
"""Images of the clients of the second and third round."""


def rounds_of(cohort: Cohort, later: Sequence[Sequence[int]]) -> list[Cohort]:
    """Return the cohort in several rounds with other models, images and sizes."""
    found = [cohort]
    for number, sizes in enumerate(later, 1):
        state = noise(cohort.requests()[0].state, number)
        shards = [
            Shard(images=cohort.shards[0].images, labels=cohort.shards[0].labels, indices=shard.indices)
            for shard in make_shards(sizes)
        ]
        few = {
            "client_configs": cohort.client_configs[: len(sizes)],
            "memories": cohort.memories[: len(sizes)],
        }
        other = replace(cohort, shards=shards, **few)
        requests = [replace(request, state=state, round=2 + number) for request in other.requests()]
        other.requests = lambda requests=requests: requests  # type: ignore[method-assign, misc]
        found.append(other)
    return found


def check(
    cohort: Cohort,
    *,
    rounds: int = 2,
    sizes: Sequence[Sequence[int]] = SIZES_LATER,
    limit: int = 1 << 30,
    share: float = 0.0,
    **options: Any,
) -> None:
    """Assert that rounds, all played back, give what the serial loop gives, up to a share of its updates."""
    assert recordable(cohort.settings)
    tracer, device_cache = Tracer(), DeviceDatasetCache(cohort.settings.device, limit)
    recorded = CudaGraphRunner(cohort.model, cohort.settings, tracer)
    steps = 0
    for one in rounds_of(cohort, sizes[: rounds - 1]):
        found = one.at_once(device_cache=device_cache, recorded=recorded, **options)
        assert recorded.failure_reason is None
        if share:
            assert_near(found, one.one_by_one(), one.requests()[0].state, share)
        else:
            assert_equal(found, one.one_by_one())
        steps += max(update.steps for update in found)
    assert tracer.played == steps or options.get("chunk")


# Two clients of one step each where tracing takes seconds; other sizes and halves of the clients come below.
DEEP = ("resnet8", "resnet8-wide", "resnet18", "resnet20")
SHALLOW = [use for use in NETWORKS if use not in ("rnn", *DEEP)]
FEW: dict[str, Any] = {"sizes": ((5, 6),)}


@pytest.mark.parametrize("use", [*SHALLOW, *(pytest.param(use, marks=pytest.mark.long) for use in DEEP)])
@pytest.mark.slow
def test_every_model_that_stacks_can_be_played_back(use: str) -> None:
    check(Cohort(model=network(use), settings=settings(momentum=0.9), shards=make_shards((8, 7))), **FEW)


@pytest.mark.slow
@pytest.mark.parametrize("use", LOSSES)
def test_every_loss_is_built_anew_from_the_counts_of_the_clients_that_play(use: str) -> None:
    check(Cohort(loss=PluginSpec(use=use), shards=make_shards((8, 7))), **FEW)


@pytest.mark.parametrize(
    "training",
    [
        {**LONG, "batch_size": 4},  # four of five have images left: the fifth must stay
        {"steps": 7},
        {"batch_size": 64},
        *(
            pytest.param(training, marks=pytest.mark.long)
            for training in (
                LONG,
                {**LONG, "optimizer": PluginSpec(use="sgd", args={"nesterov": True})},
                {"batch_size": 1},
                {"channels_last": False},
                {"schedule": PluginSpec(use="cosine")},
            )
        ),
    ],
    ids=str,
)
@pytest.mark.slow
def test_optimiser_batches_and_schedule_are_those_of_the_loop(training: dict[str, Any]) -> None:
    check(Cohort(settings=settings(**training)))


@pytest.mark.parametrize(
    ("limit", "chunk"),
    [
        pytest.param(0, 2, id="sent-2"),
        pytest.param(1 << 30, 0, id="resident-0", marks=pytest.mark.long),
        pytest.param(0, 0, id="sent-0", marks=pytest.mark.long),
        pytest.param(1 << 30, 2, id="resident-2", marks=pytest.mark.long),
    ],
)
@pytest.mark.slow
def test_images_may_live_on_the_device_or_be_sent_with_each_stack(limit: int, chunk: int) -> None:
    transforms = TransformConfig(flip=True, crop=2, rotation=20.0, cutout=3)
    check(Cohort(settings=settings(transforms)), limit=limit, chunk=chunk)


@pytest.mark.slow
def test_images_are_resized_in_the_recording() -> None:
    transforms = TransformConfig(size=12, interpolation="bicubic", crop=2, cutout=5)
    check(Cohort(model=network("resnet8"), settings=settings(transforms)), limit=0, chunk=2)


@pytest.mark.long
def test_bfloat16_agrees_with_the_loop_as_far_as_bfloat16_goes() -> None:
    check(Cohort(model=network(double=False), settings=settings(precision="bfloat16")), share=0.15)


@pytest.mark.long
def test_every_client_has_its_own_learning_rate() -> None:
    configs = [ClientConfig(lr_factor=factor) for factor in (1.0, 0.5, 2.0, 0.1, 1.0)]
    check(Cohort(client_configs=configs, settings=settings(**LONG)))


@pytest.mark.long
def test_a_frozen_part_stays() -> None:
    check(Cohort(model=network("fusion", frozen=("backbone.extractor.*",), dropout=0.0)))


@pytest.mark.slow
def test_recordings_by_halves_of_the_clients() -> None:
    """A step is recorded once for each half of the clients and kept from round to round."""
    cohort = Cohort(settings=settings(batch_size=4))
    tracer, device_cache = Tracer(), DeviceDatasetCache(cohort.settings.device, 1 << 30)
    recorded = CudaGraphRunner(cohort.model, cohort.settings, tracer)
    for _ in range(2):
        cohort.at_once(device_cache=device_cache, recorded=recorded)
    # Clients of 23, 17, 16, 5 and 1 images in batches of 4: 5, 4, 3, 3, 2 and 1 of them have a step; half of
    # 5 are 3, half of those 2.
    assert tracer.recorded == 4
    assert tracer.played == 2 * 6


@pytest.mark.slow
def test_what_the_loss_depends_on_beside_the_counts_makes_new_recordings() -> None:
    cohort = Cohort(loss=PluginSpec(use="ldam", args={"drw_round": 3}), shards=make_shards((8, 7)))
    tracer = Tracer()
    recorded = CudaGraphRunner(cohort.model, cohort.settings, tracer, key=lambda round: round)

    def trained(round: int) -> None:
        spec = cohort.loss
        cohort.build_loss = lambda counts: registry.build(  # type: ignore[method-assign]
            "loss", spec, counts=counts, round=round, rounds=5
        )
        requests = [replace(request, round=round) for request in Cohort.requests(cohort)]
        cohort.requests = lambda: requests  # type: ignore[method-assign]
        assert_equal(cohort.at_once(recorded=recorded), cohort.one_by_one())

    trained(2)
    before = tracer.recorded
    trained(2)
    assert tracer.recorded == before
    trained(3)
    assert tracer.recorded > before


@pytest.mark.long
def test_another_algorithm_makes_new_recordings() -> None:
    plain = Cohort()
    configs = [ClientConfig(numbers={"mu": 1.0})] * len(SIZES)
    recorded = CudaGraphRunner(plain.model, plain.settings, Tracer())
    for cohort in (plain, replace(plain, algorithm="fedprox", client_configs=configs), plain):
        assert_equal(cohort.at_once(recorded=recorded), cohort.one_by_one())
    assert recorded.failure_reason is None


@pytest.mark.slow
def test_more_images_or_clients_than_before_get_more_room() -> None:
    few = Cohort(shards=make_shards((2, 1)))
    recorded = CudaGraphRunner(few.model, few.settings, Tracer())
    for cohort in (few, replace(few, shards=make_shards((18, 7, 9)))):
        assert_equal(cohort.at_once(recorded=recorded), cohort.one_by_one())
    assert recorded.failure_reason is None


@pytest.mark.slow
def test_a_client_that_diverges_is_played_back_as_the_others() -> None:
    cohort = Cohort(shards=make_shards())
    personal = get_state(cohort.model, ("head.bias",))
    names = [name for name in cohort.requests()[0].state if name != "head.bias"]
    requests = [replace(request, state={n: request.state[n] for n in names}) for request in cohort.requests()]
    cohort.requests = lambda: requests  # type: ignore[method-assign]
    cohort.personals = [
        {n: t + (torch.inf if k == 2 else 0.0) for n, t in personal.items()} for k in range(5)
    ]
    recorded = CudaGraphRunner(cohort.model, cohort.settings, Tracer())
    found = cohort.at_once(recorded=recorded)
    assert recorded.failure_reason is None
    assert not found[2].state["head.weight"].isfinite().all()
    assert_equal(found, cohort.one_by_one())


def test_a_recording_that_does_something_else_is_not_believed() -> None:
    cohort = Cohort()

    def forgetful(step: Replay) -> Replay:
        return lambda: None

    recorded = CudaGraphRunner(cohort.model, cohort.settings, forgetful)
    assert_equal(cohort.at_once(recorded=recorded), cohort.one_by_one())
    assert recorded.failure_reason == "a recorded step gave something else than the step itself"


def test_a_step_that_cannot_be_recorded_is_taken_as_ever() -> None:
    cohort = Cohort()

    def refuse(step: Replay) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    recorded = CudaGraphRunner(cohort.model, cohort.settings, refuse)
    assert_equal(cohort.at_once(recorded=recorded), cohort.one_by_one())
    assert recorded.failure_reason == "operation not permitted when stream is capturing"
    assert_equal(cohort.at_once(recorded=recorded), cohort.one_by_one())


def test_out_of_memory_is_raised_and_can_be_retried() -> None:
    cohort = Cohort(shards=make_shards((8, 7)))
    full = [True]
    tracer = Tracer()

    def record(step: Replay) -> Replay:
        if full.pop() if full else False:
            raise torch.OutOfMemoryError("no memory")
        return tracer(step)

    recorded = CudaGraphRunner(cohort.model, cohort.settings, record)
    with pytest.raises(torch.OutOfMemoryError):
        cohort.at_once(recorded=recorded)
    assert recorded.failure_reason is None
    assert_equal(cohort.at_once(recorded=recorded), cohort.one_by_one())
    assert tracer.played


@pytest.mark.parametrize(
    "use", [use if use == "scaffold" else pytest.param(use, marks=pytest.mark.long) for use in STACKABLE]
)
@pytest.mark.parametrize("training", [{}, pytest.param(LONG, marks=pytest.mark.long)], ids=["plain", "long"])
@pytest.mark.slow
def test_every_algorithm_is_played_back(use: str, training: dict[str, Any]) -> None:
    model = network()
    state = get_state(model, shared_names(model, "all"))
    check(Cohort(model=model, algorithm=use, settings=settings(**training), **algorithm_case(use, state)))


class Count(ClientAlgorithm):
    """Counts its steps in a tensor, which no step without images may touch."""

    def begin(
        self, model: Any, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        self.parameters = {"head.bias": parameters["head.bias"]}
        self.groups = {"steps": {"head.bias": torch.zeros_like(parameters["head.bias"], requires_grad=False)}}
        self.numbers = {"fade": 0.1 * (1 + request.client)}

    @staticmethod
    @torch.no_grad()
    def correct_gradients(parameters: Mapping[str, nn.Parameter], groups: Groups, numbers: Numbers) -> None:
        gradient, steps, fade = parameters["head.bias"].grad, groups["steps"]["head.bias"], numbers["fade"]
        assert gradient is not None
        steps.add_(1)
        gradient.div_(1 + steps * (along(fade, steps) if isinstance(fade, torch.Tensor) else fade))

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        return {}, {"steps": self.groups["steps"]["head.bias"].clone()}


@pytest.mark.long
def test_replay_of_a_plugin_algorithm() -> None:
    """A plug-in's algorithm is played back and a client that has ended is left alone."""
    cohort = Cohort(algorithm=f"{__name__}:Count", settings=settings(batch_size=4))
    check(cohort)
    tracer = Tracer()
    updates = cohort.at_once(recorded=CudaGraphRunner(cohort.model, cohort.settings, tracer))
    # 5, 1, 23, 17 and 16 images in batches of 4.
    assert [int(update.memory["steps"][0]) for update in updates] == [2, 1, 6, 5, 4]


def test_tensors_of_ones_own_that_stay_as_they_are_are_not_played_back() -> None:
    model = network("fusion", dropout=0.0)
    model.get_submodule("backbone.extractor").requires_grad_(False)
    home = get_state(model, personal_names(model, shared_names(model, "trainable")))
    shift = [{name: t + 0.01 * k for name, t in home.items()} for k in range(len(SIZES))]
    cohort = Cohort(model=model, shared="trainable", personals=shift)
    tracer = Tracer()
    assert_equal(
        cohort.at_once(recorded=CudaGraphRunner(cohort.model, cohort.settings, tracer)), cohort.one_by_one()
    )
    assert not tracer.recorded


@pytest.mark.parametrize(
    ("use", "args", "yes"),
    [
        ("sgd", {}, True),
        ("sgd", {"dampening": 0.1}, False),
        ("torch.optim:SGD", {}, False),
        ("adam", {}, False),
    ],
)
def test_only_what_keeps_all_in_tensors_is_recorded(use: str, args: dict[str, Any], yes: bool) -> None:
    assert recordable(settings(optimizer=PluginSpec(use=use, args=args))) is yes
