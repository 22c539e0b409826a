"""The one local loop: a client's epochs of mini-batch training on its own shard.

Every method (FedProx, SCAFFOLD, ...) is an ``Objective`` that adds to this loop; every loss is built from
class counts and called per example. The stacked version of the same mathematics must agree with this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision import registry, seeding
from fedvision.config import TrainingConfig
from fedvision.data.shards import Shard
from fedvision.data.transforms import BatchTransform
from fedvision.errors import ClientError, PluginError
from fedvision.models.layout import may_block
from fedvision.models.state import get_state, kept, load_state
from fedvision.training.objectives import Objective
from fedvision.training.schedules import Schedule
from fedvision.types import LossFn, State, Task

if TYPE_CHECKING:
    from fedvision.training.evaluate import Evaluation

_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What stays the same for every client and round of a run."""

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


@dataclass(frozen=True, kw_only=True)
class LocalUpdate:
    """What local training returns, before it becomes a message."""

    state: State
    """The travelling tensors after training."""
    examples: int
    """Images the client trained on."""
    loss: float
    """Mean training loss over all images seen, as the loss defines it."""
    steps: int
    """Optimiser steps taken."""
    tensors: dict[str, State] = field(default_factory=dict)
    """What the objective sends back."""
    memory: State = field(default_factory=dict)
    """What the objective keeps on the client."""
    personal: State = field(default_factory=dict)
    """The tensors after training that do not travel."""
    measured: Evaluation | None = None
    """What was counted of the task's state before training, where the task asked for it."""


def fit(
    model: nn.Module,
    shard: Shard,
    task: Task,
    *,
    loss: LossFn,
    objective: Objective,
    settings: LoopSettings,
    memory: State | None = None,
) -> LocalUpdate:
    """Train a model on one client's shard, starting from the task's state.

    Args:
        model: The network, on ``settings.device``; its tensors are overwritten.
        shard: The client's training images, at least one.
        task: Round, client, global state and the strategy's instruction.
        loss: Per-example loss ``(logits [B, C], labels [B]) -> [B]``.
        objective: What the method adds; ``Objective()`` adds nothing.
        settings: Optimiser, transforms, device, seed.
        memory: What the objective returned for this client before.

    Returns:
        The trained travelling state on the CPU with its facts.
    """
    load_state(model, task.state)
    model.train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    lr = float(settings.training.lr * settings.schedule(task.round, settings.rounds)) * rate(task)
    optimizer = settings.make_optimizer(list(parameters.values()), lr)
    objective.begin(parameters, task, memory or {})
    step = _Step(model, loss, objective, optimizer, settings, (task.round, task.client))
    total, seen, steps = torch.zeros((), device=settings.device), 0, 0
    with seeding.torch_global(settings.seed, "dropout", task.round, task.client):
        for batch in positions(len(shard), task, settings, has_batch_norm(model)):
            total += step(*shard.batch(batch))
            seen += len(batch)
            steps += 1
    tensors, remembered = objective.finish(steps, lr)
    return LocalUpdate(
        state=get_state(model, tuple(task.state)),
        examples=len(shard),
        loss=float(total) / seen,
        steps=steps,
        tensors=tensors,
        memory=remembered,
        personal=get_state(model, kept(model, task.state)),
    )


def rate(task: Task) -> float:
    """Return the factor on a client's learning rate that its task tells.

    Raises:
        ClientError: It is not > 0 and finite.
    """
    factor = task.instruction.lr_factor
    if not 0 < factor < math.inf:
        raise ClientError(task.client, "training", f"the factor on its learning rate is {factor}, not > 0")
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
        PluginError: The optimiser is unknown, or ``training.momentum`` is set and it has none.
    """
    fixed: dict[str, object] = {"weight_decay": training.weight_decay}
    if training.momentum:
        if "momentum" not in registry.parameters("optimizer", training.optimizer.use):
            raise PluginError(
                f"training.momentum: the optimiser {training.optimizer.use!r} has none; set momentum = 0"
            )
        fixed["momentum"] = training.momentum
    build = registry.maker("optimizer", training.optimizer, frozenset({"params", "lr", *fixed}))

    def make(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = build(params=parameters, lr=lr, **fixed)
        return optimizer

    return make


def forward_pass(training: TrainingConfig, device: torch.device) -> AbstractContextManager[object]:
    """Return the block in which one model's forward pass runs: its precision, the layout it may use."""
    return may_block() if training.precision == "float32" else autocast(training, device)


def autocast(training: TrainingConfig, device: torch.device) -> AbstractContextManager[object]:
    """Return the block in which a forward pass runs in the experiment's precision."""
    if training.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_PRECISIONS[training.precision])


class _Step:
    """One optimiser step: images and labels in, the sum of the batch's losses out."""

    def __init__(
        self,
        model: nn.Module,
        loss: LossFn,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        settings: LoopSettings,
        stream: tuple[int, int],
    ) -> None:
        self.model, self.loss, self.objective, self.optimizer = model, loss, objective, optimizer
        self.settings = settings
        self.generator = seeding.torch_stream(settings.seed, "augment", *stream)
        scaled = settings.training.precision == "float16" and settings.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(settings.device.type) if scaled else None

    def __call__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> torch.Tensor:
        training, device = self.settings.training, self.settings.device
        pixels = torch.from_numpy(images).to(device, non_blocking=True)
        target = torch.from_numpy(labels).to(device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._losses(pixels, target)
        mean = losses.mean()
        (self.scaler.scale(mean) if self.scaler else mean).backward()  # type: ignore[no-untyped-call]
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        self.objective.adjust()
        if training.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        return losses.detach().sum()

    def _losses(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss per example [B], a blend of two where mixup is on."""
        transform = self.settings.transform
        x = transform.normalise(pixels, channels_last=self.settings.training.channels_last)
        x = transform.augment(x, self.generator)
        mixed = transform.mixup(x, labels, self.generator)
        with forward_pass(self.settings.training, self.settings.device):
            if mixed is None:
                return self.loss(self.model(x), labels)
            x, other, weight = mixed
            logits = self.model(x)
            return weight * self.loss(logits, labels) + (1 - weight) * self.loss(logits, other)


def positions(
    examples: int, task: Task, settings: LoopSettings, batch_norm: bool
) -> Iterator[NDArray[np.int64]]:
    """Yield the positions [B] of each mini-batch: shuffled epochs, or a set number of steps over them."""
    training = settings.training
    rng = seeding.numpy_stream(settings.seed, "batches", task.round, task.client)
    cuts = np.arange(training.batch_size, examples, training.batch_size)
    if batch_norm and examples % training.batch_size == 1:
        # Batch norm has no variance over a single image: the batch before takes it in.
        cuts = cuts[:-1]
    limit = training.steps or training.epochs * (len(cuts) + 1)
    taken = 0
    while taken < limit:
        batches = np.split(rng.permutation(examples), cuts)[: limit - taken]
        yield from batches
        taken += len(batches)


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a network measures its batches."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
