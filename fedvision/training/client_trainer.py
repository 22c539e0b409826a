"""What one machine does for the clients it hosts: recall, build the loss, train, keep, measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import nn

from fedvision import registry, seeding
from fedvision.config import ExperimentConfig
from fedvision.data.image_counts import ImageCounts
from fedvision.data.shards import Shard
from fedvision.data.transforms import prepare
from fedvision.devices import choose_device
from fedvision.errors import ClientError
from fedvision.inputs import Batch
from fedvision.losses.counts import mixed
from fedvision.losses.logits import sharpened, sharpness
from fedvision.models.meta import filled
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import counters, get_state, load_state
from fedvision.models.tensor_checks import trains_alone
from fedvision.tasks.base import Task, build_task
from fedvision.training.allocator import keep_freed_memory
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.client_half import client_algorithm, client_half, memory_group
from fedvision.training.client_plugins import client_plugins, may_draw, network_plugins
from fedvision.training.client_state import MODEL, PERSONAL, RESIDUAL, ClientStateStore
from fedvision.training.compilation import compile_model
from fedvision.training.evaluate import Evaluation, evaluate, mean_loss
from fedvision.training.loop import LoopSettings, TrainResult, fit
from fedvision.training.statistics import LocalData, compute_statistic
from fedvision.types import LossFn, Query, State, TrainRequest
from fedvision.updates import chain
from fedvision.updates.chain import UpdateChain


class Shards(Protocol):
    """Where clients' images come from: a split of one data set, or the machine's own folder."""

    def train(self, client: int) -> Shard:
        """Return the client's training images."""

    def test(self, client: int) -> Shard:
        """Return the images that the client keeps for measurement; may be empty."""


@dataclass(frozen=True, kw_only=True)
class ClientTrainer:
    """One model on one device that serves many clients, one after the other."""

    config: ExperimentConfig
    """The experiment."""
    settings: LoopSettings
    """Transforms, device and seed of the local loop."""
    model: nn.Module
    """The network, on the device."""
    num_classes: int
    """C."""
    shards: Shards
    """The clients' images."""
    memory: ClientStateStore
    """What the clients keep between rounds."""
    initial: State
    """The tensors that do not travel, as the model began."""
    counters: State
    """The whole numbers of the model, as it began; each client begins a round with them."""
    updates: UpdateChain
    """What is done to a client's update before it travels."""

    @classmethod
    def open(
        cls,
        config: ExperimentConfig,
        model: nn.Module,
        num_classes: int,
        shards: Shards,
        memory: ClientStateStore,
        *,
        trains: bool = True,
    ) -> ClientTrainer:
        """Put the model on its device and make ready what all its clients share.

        Args:
            config: The experiment.
            model: The network.
            num_classes: C.
            shards: The clients' images.
            memory: What the clients keep between rounds.
            trains: A process that only measures gives back what it frees: large models pass through it, and
                a heap that keeps their gaps grew to twice what was in use.
        """
        settings = loop_settings(config, shards.train(0).images.shape[-1])
        if trains and settings.device.type == "cpu":
            keep_freed_memory()
        model = settings.forward.place(filled(model))
        if trains:
            settings = replace(settings, single=_trains_single(model, shards.train(0), settings))
            if config.training.compile:
                compile_model(model, _blank(shards.train(0), settings), settings.forward)
        initial = get_state(model, ParameterGroups.of(model, config.model).personal)
        return cls(
            config=config,
            settings=settings,
            model=model,
            num_classes=num_classes,
            shards=shards,
            memory=memory,
            initial=initial,
            counters=get_state(model, counters(model)),
            updates=chain.build(config, model),
        )

    def image_counts(self, client: int) -> ImageCounts:
        """Return how many training images a client has, and of each class."""
        return self.shards.train(client).image_counts(self.num_classes, self.task.class_counts)

    def train(self, request: TrainRequest) -> TrainResult:
        """Train one client on its task and keep what it must remember; measure first where requested."""
        measured = self.measure_first(request)
        shard = self.shards.train(request.client)
        memory = self._recall(request.client, request.round, request.silent_since)
        with self._streams("plug-ins", request.round, request.client):
            request = self.with_own(request, shard)
            update = fit(
                self.model,
                shard,
                request,
                loss=self.make_loss(self.loss_counts(request, shard), request.round),
                algorithm=client_algorithm(request),
                settings=self.settings,
                memory=memory.get(memory_group(request), {}),
            )
        return self.finish(request, replace(update, measured=measured), memory.get(RESIDUAL, {}))

    def with_own(self, request: TrainRequest, shard: Shard) -> TrainRequest:
        """Return a task with what its client half sees of the client's own images, where it names one.

        These are their class counts and, where the half needs it, the loss of the model that was sent: the
        client's personal tensors must be in the network, whose other tensors are overwritten.
        """
        if request.algorithm is None:
            return request
        counts = shard.counts(self.num_classes, self.task.class_counts)
        request = replace(request, own_counts=tuple(counts.tolist()))
        if not client_half(request).needs_loss:
            return request
        load_state(self.model, request.state)
        loss = self.make_loss(self.loss_counts(request, shard), request.round)
        batch_size = self.config.evaluation.batch_size
        found = mean_loss(self.model, shard, self.settings.forward, loss, batch_size=batch_size)
        return replace(request, own_loss=found)

    def finish(self, request: TrainRequest, update: TrainResult, residual: State) -> TrainResult:
        """Return an update as it travels, once what the client must remember of the round is kept.

        Args:
            request: The client's task.
            update: What its training returned.
            residual: What transforms left out of its last update.
        """
        if self.updates:
            stream = "update", request.round, request.client
            rng = seeding.numpy_stream(self.config.seed, *stream)
            with self._streams(*stream):
                sent, left = self.updates.encode(update.state, request.state, residual, rng, update.examples)
            update = replace(update, state=sent, residual=left)
        groups = {memory_group(request): update.memory, PERSONAL: update.personal, RESIDUAL: update.residual}
        self.memory.save(request.client, request.round, groups, request.silent_since)
        return update

    def measure_first(self, request: TrainRequest) -> Evaluation | None:
        """Measure the state that a task begins with, if requested.

        Training draws from streams of its own, loads every tensor anew and evaluation changes none, so what
        is trained afterwards does not depend on this.
        """
        if not request.measure:
            return None
        return self.evaluate(request.client, request.round - 1, request.state, client_half(request))

    def evaluate(
        self, client: int, round: int, state: State, half: type[ClientAlgorithm] = ClientAlgorithm
    ) -> Evaluation:
        """Measure a state on the images that a client kept for it, with the client's personal tensors.

        Args:
            client: Whose images.
            round: The round after which it is measured.
            state: The global model.
            half: The method's client half; where it has a personal model, that is measured as well. Until the
                client has trained once, that is the global model.
        """
        memory = self._recall(client, round + 1)
        load_state(self.model, state)
        found = self._measure(self.shards.test(client))
        if not half.personal_model:
            return found
        own = memory.get(MODEL)
        if not own:
            return replace(found, personal=found)
        load_state(self.model, half.personal_state(own, state))
        return replace(found, personal=self._measure(self.shards.test(client)))

    def statistic(self, client: int, round: int, state: State, query: Query) -> tuple[State, int]:
        """Return a statistic's sums over a client's training images, and their number.

        Args:
            client: Whose images.
            round: The round after which it is queried.
            state: The global model that the statistic sees, with the client's personal tensors.
            query: The statistic.
        """
        self._recall(client, round + 1)
        load_state(self.model, state)
        shard = self.shards.train(client)
        data = LocalData(
            shard=shard,
            settings=self.settings.forward,
            num_classes=self.num_classes,
            batch_size=self.config.evaluation.batch_size,
            sharpness=probability_scale(self.config, self.num_classes),
            held_out=self.shards.test(client) if self.config.evaluation.holdout else None,
        )
        with self._streams("statistic", round, client):
            return compute_statistic(query, self.model, data), len(shard)

    def measure(self, state: State, shard: Shard) -> Evaluation:
        """Measure a state on a shard of no client, such as the server's test images."""
        load_state(self.model, {**self.counters, **self.initial, **state})
        return self._measure(shard)

    def seconds_per_image(self, client: int, batches: int = 4) -> float:
        """Return how long training takes for an image, measured on a client's first batches.

        Args:
            client: Whose images are used; nothing of it is kept, but the model is overwritten.
            batches: How many are timed, after one that warms up.
        """
        shard, size = self.shards.train(client), self.settings.training.batch_size
        names = ParameterGroups.of(self.model, self.config.model).shared
        counts = self.image_counts(client).counts
        request = TrainRequest(round=1, client=client, state=get_state(self.model, names), counts=counts)
        settings = replace(self.settings, training=replace(self.settings.training, epochs=1, steps=0))
        seconds = float("inf")
        for count in (size, size * batches):
            part = shard.take(np.arange(min(count, len(shard))))
            start = time.perf_counter()
            loss = self.make_loss(self.loss_counts(request, part), request.round)
            fit(self.model, part, request, loss=loss, algorithm=ClientAlgorithm(), settings=settings)
            seconds = min(seconds, (time.perf_counter() - start) / len(part))
        return seconds

    def _measure(self, shard: Shard) -> Evaluation:
        return evaluate(
            self.model,
            shard,
            self.settings.forward,
            batch_size=self.config.evaluation.batch_size,
            num_classes=self.num_classes,
            sharpness=self.sharpness,
        )

    def _streams(self, purpose: str, *ids: int) -> AbstractContextManager[None]:
        """Seed the global generators where code that is not ours may draw from them."""
        if not self._may_draw:
            return nullcontext()
        return seeding.global_streams(self.config.seed, purpose, *ids)

    @cached_property
    def _may_draw(self) -> bool:
        return may_draw([("strategy", self.config.strategy.use), *client_plugins(self.config)])

    @property
    def task(self) -> Task:
        """What is learned and measured."""
        return self.settings.task

    @cached_property
    def sharpness(self) -> float:
        """With which the network predicts softmax(s z): the loss's own scale, where it has one."""
        return probability_scale(self.config, self.num_classes)

    def _recall(self, client: int, round: int, silent_since: int | None = None) -> dict[str, State]:
        """Return what a client kept before a round, its personal tensors already in the model."""
        memory = self.memory.load(client, round, silent_since)
        if self.initial or self.counters:
            load_state(self.model, self.counters | memory.get(PERSONAL, self.initial))
        return memory

    def loss_counts(self, request: TrainRequest, shard: Shard) -> torch.Tensor:
        """Return the class counts [C] that a client's loss sees.

        Raises:
            ClientError: They rest on the federation's, and the request lacks them.
        """
        loss, shared = self.config.loss, request.counts
        if loss.prior == "local":
            return self._own_counts(shard)
        if shared is None or len(shared) != self.num_classes:
            found = f"those of {len(shared)} classes, and there are {self.num_classes}" if shared else "none"
            raise ClientError(
                request.client,
                "training",
                f"loss.prior is {loss.prior}: a training message must have the federation's class counts, "
                f"and the message has {found}",
            )
        federation = torch.tensor(shared)
        if loss.prior == "global":
            return federation
        return mixed(federation, self._own_counts(shard), loss.local_share)

    def _own_counts(self, shard: Shard) -> torch.Tensor:
        return torch.from_numpy(shard.counts(self.num_classes, self.task.class_counts))

    @cached_property
    def make_loss(self) -> Callable[[torch.Tensor, int], LossFn]:
        """``make_loss(counts [C], round) -> loss``."""
        return loss_maker(self.config)


def build_loss(config: ExperimentConfig, counts: torch.Tensor) -> LossFn:
    """Build the experiment's loss of the first round from class counts [C].

    Raises:
        PluginError: The loss is unknown or its arguments do not fit.
    """
    return loss_maker(config)(counts, 1)


def probability_scale(config: ExperimentConfig, num_classes: int) -> float:
    """Return s, with which a network that the experiment's loss trains predicts softmax(s z) of logits z."""
    return sharpness(build_loss(config, torch.ones(num_classes, dtype=torch.int64)))


def loss_maker(config: ExperimentConfig) -> Callable[[torch.Tensor, int], LossFn]:
    """Return ``make(counts [C], round) -> loss`` for the many clients of a run, as the task applies it.

    Raises:
        PluginError: The loss or the task is unknown, or its arguments do not fit.
    """
    build = registry.maker("loss", config.loss, frozenset({"counts", "round", "rounds"}))
    task = build_task(config.task)

    def make(counts: torch.Tensor, round: int) -> LossFn:
        criterion: LossFn = build(counts=counts, round=round, rounds=config.rounds)
        loss = task.loss(criterion, counts.shape[-1])
        return loss if loss is criterion else sharpened(loss, sharpness(criterion))

    return make


def loop_settings(config: ExperimentConfig, channels: int) -> LoopSettings:
    """Make ready what the local loop needs in every round.

    Raises:
        ConfigError: The device is not there, or the transforms do not fit the channels.
    """
    return LoopSettings(
        task=build_task(config.task),
        training=config.training,
        transform=prepare(config.transforms, channels),
        device=choose_device(config.training.device),
        seed=config.seed,
        rounds=config.rounds,
        draws=may_draw(network_plugins(config.model)),
    )


def _trains_single(model: nn.Module, shard: Shard, settings: LoopSettings) -> bool:
    """Try a batch of one image; no random stream moves, and the model stays as it was."""
    with seeding.global_streams(settings.seed, "trial"):
        return trains_alone(model, _blank(shard, settings)[:1])


def _blank(shard: Shard, settings: LoopSettings) -> Batch:
    """Return a step's images [B, channels, H, W] in their layout, all of them gray and without columns."""
    _, height, width, channels = shard.images.shape
    size = min(settings.training.batch_size, max(2, len(shard)))
    further = None if shard.further is None else np.full((size, shard.further.shape[1]), np.nan, np.float32)
    gray = torch.full((size, height, width, channels), 128, dtype=torch.uint8)
    return settings.forward.inputs(gray, further)
