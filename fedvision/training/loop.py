"""The one local loop: a client's epochs of mini-batch training on its own shard.

Every method (FedProx, SCAFFOLD, ...) is a ``ClientAlgorithm`` that adds to this loop; every loss is built
from class counts and called per example. The vectorized version of the same mathematics must agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision import registry, seeding
from fedvision.config import TrainingConfig
from fedvision.data.shards import Shard
from fedvision.data.transforms import BatchTransform, input_shape
from fedvision.errors import ClientError, DataError, PluginError
from fedvision.inputs import Batch, images_of, with_images
from fedvision.models.freezing import trained_alone, training_mode
from fedvision.models.recomputation import recomputed
from fedvision.models.state import get_state, load_state, personal_names
from fedvision.tasks.base import Task
from fedvision.training.blended_loss import BlendedLoss
from fedvision.training.client_algorithm import ClientAlgorithm, Pass, finished
from fedvision.training.forward import ForwardSettings
from fedvision.training.samplers import Sampler, sampler_maker
from fedvision.training.schedules import Schedule
from fedvision.types import LossFn, State, TrainRequest

if TYPE_CHECKING:
    from fedvision.training.evaluate import Evaluation

_FETCH = 2**18
"""Values of images (1 MiB, normalised) from which on no more batches are put together: a cache holds them."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What stays the same for every client and round of a run."""

    task: Task
    """What targets and outputs are."""
    training: TrainingConfig
    """Optimiser, learning rate, epochs, batch size, precision."""
    transform: BatchTransform
    """Normalisation and augmentation."""
    device: torch.device
    """Where the model is."""
    seed: int
    """The experiment's root seed."""
    rounds: int
    """Rounds of the whole run, for schedules."""
    single: bool = True
    """Whether the network trains on a batch of one image."""
    draws: bool = False
    """Whether the network is a plug-in that may draw from the global generators."""

    @cached_property
    def forward(self) -> ForwardSettings:
        """What a forward pass alone needs of these."""
        return ForwardSettings(
            task=self.task,
            transform=self.transform,
            device=self.device,
            precision=self.training.precision,
            channels_last=self.training.channels_last,
            draws=self.draws,
        )

    # Found once a run and not for every client: a look-up reads the entry points of every package.

    @cached_property
    def make_optimizer(self) -> Callable[[list[nn.Parameter], float], torch.optim.Optimizer]:
        """``make_optimizer(parameters, lr)``, checked."""
        return optimizer_maker(self.training)

    @cached_property
    def schedule(self) -> Schedule:
        """``schedule(round, rounds) -> factor`` on the learning rate."""
        schedule: Schedule = registry.build("schedule", self.training.schedule)
        return schedule

    @cached_property
    def make_sampler(self) -> Callable[[int], Sampler]:
        """``make_sampler(round) -> sampler`` of an epoch's images."""
        return sampler_maker(self.training.sampler, self.rounds)

    def lr(self, round: int) -> float:
        """Return the learning rate of a round (from 1) under the schedule."""
        return float(self.training.lr * self.schedule(round, self.rounds))


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What local training returns, before it becomes a message."""

    state: State
    """What travels: the shared tensors after training, or what update transforms made of their change."""
    examples: int
    """Images the client trained on."""
    loss: float
    """Mean training loss over all images seen, as the loss defines it."""
    steps: int
    """Optimiser steps taken."""
    tensors: dict[str, State] = field(default_factory=dict)
    """What the algorithm sends back."""
    memory: State = field(default_factory=dict)
    """What the algorithm keeps on the client."""
    residual: State = field(default_factory=dict)
    """What update transforms keep on the client."""
    personal: State = field(default_factory=dict)
    """The tensors after training that do not travel."""
    measured: Evaluation | None = None
    """What was counted of the task's state before training, where the task requested it."""


def fit(
    model: nn.Module,
    shard: Shard,
    request: TrainRequest,
    *,
    loss: LossFn,
    algorithm: ClientAlgorithm,
    settings: LoopSettings,
    memory: State | None = None,
) -> TrainResult:
    """Train a model on one client's shard, starting from the task's state.

    Args:
        model: The network, on ``settings.device``; its tensors are overwritten.
        shard: The client's training images, at least one.
        request: Round, client, global state and the strategy's instruction.
        loss: Per-example loss ``(outputs, targets [B, ...]) -> [B]``.
        algorithm: The client half of the method; ``ClientAlgorithm()`` adds nothing.
        settings: Optimiser, transforms, device, seed.
        memory: What the algorithm returned for this client before.

    Returns:
        The trained travelling state on the CPU with its facts.
    """
    load_state(model, request.state)
    training_mode(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    algorithm.lr = lr = settings.lr(request.round) * rate(request)
    algorithm.begin(model, parameters, request, memory or {})
    shard = _look_ahead(model, shard, request, algorithm, settings)
    losses, steps = list[torch.Tensor](), 0
    with recomputed(model) if settings.training.checkpoint_activations else nullcontext():
        for place, one in enumerate(algorithm.passes()):
            algorithm.begin_pass(place)
            found = _pass(model, shard, request, one, loss, algorithm, settings)
            losses += found if one.counted else []
            steps += len(found)
    tensors, remembered = finished(algorithm, steps, lr)
    return TrainResult(
        state=get_state(model, tuple(request.state)),
        examples=len(shard),
        loss=float(torch.cat(losses).mean()),
        steps=steps,
        tensors=tensors,
        memory=remembered,
        personal=get_state(model, personal_names(model, request.state)),
    )


def _look_ahead(
    model: nn.Module, shard: Shard, request: TrainRequest, algorithm: ClientAlgorithm, settings: LoopSettings
) -> Shard:
    """Give an algorithm its random stream and a look at the images; return the shard with its labels."""
    if algorithm.draws:
        algorithm.generator = seeding.torch_stream(settings.seed, "method", request.round, request.client)
    if type(algorithm).survey is ClientAlgorithm.survey:
        return shard
    size = settings.training.batch_size
    batches = np.split(np.arange(len(shard)), np.arange(size, len(shard), size))
    training_mode(model, False)
    with torch.no_grad(), settings.forward.one_model():
        algorithm.survey(model, _fetched(shard, batches, settings))
    training_mode(model)
    if algorithm.labels is None:
        return shard
    labels = np.array(shard.labels)
    labels[shard.indices] = algorithm.labels.numpy()
    return replace(shard, labels=labels)


def _pass(
    model: nn.Module,
    shard: Shard,
    request: TrainRequest,
    one: Pass,
    loss: LossFn,
    algorithm: ClientAlgorithm,
    settings: LoopSettings,
) -> list[torch.Tensor]:
    """Take the steps of a pass and return the losses of each step's images."""
    norm = has_batch_norm(model)
    least = 2 if norm or not settings.single else 1  # images that the network needs in a part of a batch
    with trained_alone(model, one.trained) as parameters:
        moved = [*parameters, *algorithm.further.values()]
        optimizer = settings.make_optimizer(moved, algorithm.lr)
        stream = (request.round, request.client)
        step = _Step(model, loss, algorithm, optimizer, settings, one, stream, least)
        with seeding.torch_global(settings.seed, one.purpose("dropout"), *stream):
            batches = positions(shard, request, settings, norm, one)
            return [step(x, targets) for x, targets in _fetched(shard, batches, settings)]


def rate(request: TrainRequest) -> float:
    """Return the factor on a client's learning rate in its task.

    Raises:
        ClientError: It is not > 0 and finite.
    """
    factor = request.client_config.lr_factor
    if not 0 < factor < math.inf:
        raise ClientError(request.client, "training", f"the factor on its learning rate is {factor}, not > 0")
    return factor


def learning_rate(training: TrainingConfig, round: int, rounds: int) -> float:
    """Return the local learning rate of a round (from 1) under the experiment's schedule."""
    schedule = registry.build("schedule", training.schedule)
    return float(training.lr * schedule(round, rounds))


def optimizer_maker(
    training: TrainingConfig,
) -> Callable[[list[nn.Parameter], float], torch.optim.Optimizer]:
    """Return ``make(parameters, lr)``, which builds the local optimiser.

    Raises:
        PluginError: The optimiser is unknown, takes no ``lr``, or has no momentum or weight decay where such
            is set.
    """
    use = training.optimizer.use
    # What a factory does not name is not passed to it.
    named = registry.parameters("optimizer", use)
    if "lr" not in named:
        raise PluginError(
            f"training.lr: the optimiser {use!r} takes no argument 'lr'; let its factory name it"
        )
    for key in ("momentum", "weight_decay"):
        if getattr(training, key) and key not in named:
            raise PluginError(f"training.{key}: the optimiser {use!r} has none; set {key} = 0")
    fixed: dict[str, object] = {"weight_decay": training.weight_decay}
    if training.momentum:
        fixed["momentum"] = training.momentum
    build = registry.maker("optimizer", training.optimizer, frozenset({"params", "lr", *fixed}))

    def make(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = build(params=parameters, lr=lr, **fixed)
        return optimizer

    return make


def _fetched(
    shard: Shard, batches: Iterable[NDArray[np.int64]], settings: LoopSettings
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yield each mini-batch's images [B, channels, H, W], normalised, and targets [B, ...], on the device.

    Small batches are fetched several at a time: what a call costs beside its images is then paid once.
    """
    waiting: list[NDArray[np.int64]] = []
    pixels = math.prod(input_shape(settings.transform.config, shard.images.shape[1:]))
    for batch in batches:
        waiting.append(batch)
        if pixels * sum(map(len, waiting)) >= _FETCH:
            yield from _fetch(shard, waiting, settings)
            waiting = []
    if waiting:
        yield from _fetch(shard, waiting, settings)


def _fetch(
    shard: Shard, batches: Sequence[NDArray[np.int64]], settings: LoopSettings
) -> Iterator[tuple[Batch, torch.Tensor]]:
    x, targets = settings.forward.batch(shard, np.concatenate(batches))
    sizes = [len(batch) for batch in batches]
    return zip(x.split(sizes), targets.split(sizes), strict=True)  # type: ignore[no-untyped-call]


_Part = tuple[Batch, torch.Tensor, LossFn]
"""Images [b, channels, H, W] of a batch, augmented, their targets [b, ...] and the loss of each."""


class _Step:
    """One optimiser step: normalised images and targets in, the loss of each image out."""

    def __init__(
        self,
        model: nn.Module,
        loss: LossFn,
        algorithm: ClientAlgorithm,
        optimizer: torch.optim.Optimizer,
        settings: LoopSettings,
        one: Pass,
        stream: tuple[int, int],
        least: int,
    ) -> None:
        self.model, self.loss, self.algorithm, self.optimizer = model, loss, algorithm, optimizer
        self.settings, self.one, self.stream = settings, one, stream
        scaled = settings.training.precision == "float16" and settings.device.type == "cuda"
        self.least = least
        self.scaler = torch.amp.GradScaler(settings.device.type, enabled=scaled)

    @cached_property
    def generator(self) -> torch.Generator:
        """The source of all that is drawn for augmentation."""
        return seeding.torch_stream(self.settings.seed, self.one.purpose("augment"), *self.stream)

    def __call__(self, x: Batch, targets: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        found = [self._backward(part, len(x)) for part in self._parts(x, targets)]
        # A copy made here, kept over steps, would split the memory that the backward pass has just freed.
        losses = torch.cat(found) if len(found) > 1 else found[0]
        self.scaler.unscale_(self.optimizer)
        self.algorithm.after_backward()
        if norm := self.settings.training.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), norm)
            if further := self.algorithm.further:
                nn.utils.clip_grad_norm_(further.values(), norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses

    def _parts(self, x: Batch, targets: torch.Tensor) -> list[_Part]:
        """Augment a batch and return it in the parts that go through the network one after the other."""
        transform = self.settings.transform
        others: torch.Tensor | None = None
        weight = 1.0
        if transform.draws:
            drawn = transform.draw(len(x), (x.shape[2], x.shape[3]), self.generator)
            images, targets = self.settings.task.transform(images_of(x), targets, drawn, transform)
            if mixed := transform.mixup(images, targets, self.generator):
                images, others, weight = mixed
            x = with_images(x, images)
        count = min(self.settings.training.accumulate, max(1, len(x) // self.least))
        losses: list[LossFn] = [self.loss] * count
        if others is not None:
            losses = [BlendedLoss(self.loss, own, weight) for own in others.tensor_split(count)]
        return list(zip(x.tensor_split(count), targets.tensor_split(count), losses, strict=True))

    def _backward(self, part: _Part, images: int) -> torch.Tensor:
        """Add the gradients of a part's share in the mean loss of a step's images; return its losses [b]."""
        x, targets, loss = part
        with self.settings.forward.one_model():
            losses = self.algorithm.loss(self.model, x, targets, loss)
        mean = losses.mean() if len(x) == images else losses.sum() / images
        self.scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
        return losses.detach()


def positions(
    shard: Shard, request: TrainRequest, settings: LoopSettings, batch_norm: bool, one: Pass | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yield the positions [B] of each mini-batch: the sampler's epochs, or a set number of steps over them.

    Raises:
        DataError: There is one image, and the network cannot train on one alone, or the sampler does not
            take the targets.
        PluginError: The sampler fails.
    """
    training, examples = settings.training, len(shard)
    if examples == 1 and not settings.single:
        raise DataError(
            "there is one image to train on, and the network cannot train on a batch of one image; add "
            "images, or take a network that can"
        )
    one = one or Pass()
    sample = settings.make_sampler(request.round)
    rng = seeding.numpy_stream(settings.seed, one.purpose("batches"), request.round, request.client)
    cuts = np.arange(training.batch_size, examples, training.batch_size)
    if (batch_norm or not settings.single) and examples % training.batch_size == 1:
        # A single image has no variance: the batch before takes it in.
        cuts = cuts[:-1]
    steps = 0 if one.epochs else training.steps
    limit = steps or (one.epochs or training.epochs) * (len(cuts) + 1)
    taken = 0
    while taken < limit:
        batches = np.split(sample(shard, rng), cuts)[: limit - taken]
        yield from batches
        taken += len(batches)


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a network measures its batches."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
