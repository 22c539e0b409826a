"""What a strategy does beside averaging (losses, statistics, refinement), tried before a run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedvision import seeding
from fedvision.aggregation.fixed_point import to_fixed_point
from fedvision.algorithms.base import Answer, RoundStrategy, ServerContext
from fedvision.config import ExperimentConfig
from fedvision.data.shards import Shard
from fedvision.data.sources.inputs import absent
from fedvision.errors import ClientError, ConfigError, FedVisionError, with_kind
from fedvision.flower import query_codec
from fedvision.flower.strategy import FlowerStrategy
from fedvision.inputs import Batch
from fedvision.models.freezing import training_mode
from fedvision.models.meta import model_with
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import get_state
from fedvision.server.checks import check_state
from fedvision.tasks.base import build_task
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.client_trainer import build_loss, loop_settings
from fedvision.training.statistics import LocalData, compute_statistic
from fedvision.types import Query, TrainRequest


def rehearse(
    config: ExperimentConfig,
    strategy: Strategy,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> None:
    """Compute the statistics to query on a blank image of each class, and refine the model with it.

    Args:
        config: The experiment.
        strategy: Its strategy; a copy of it is tried.
        model: The network as it begins; it stays as it is.
        image_shape: (H, W, channels).
        num_classes: C.

    Raises:
        ConfigError: A statistic or the refinement does not work with this model.
    """
    requested = [Query(use=use) for use in config.evaluation.statistics]
    own = copy.deepcopy(strategy.inner) if isinstance(strategy, FlowerStrategy) and strategy.refines else None
    if own is None and not requested:
        return
    data = _blank_images(config, image_shape, num_classes)
    try:
        trial = data.settings.place(model_with(model, {}))
        for one in requested:
            to_fixed_point(compute_statistic(one, trial, data))
        if own is None:
            return
        answers = [answer for _, answer in _answers(config, own, trial, data)]
        state = get_state(model, ParameterGroups.of(model, config.model).shared)
        context = ServerContext(
            round=config.rounds,
            rounds=config.rounds,
            answers=tuple(answers),
            class_counts=(1,) * num_classes,
            make_model=partial(model_with, model),
            generator=seeding.torch_stream(config.seed, "refine", 0),
        )
        check_state(config.rounds, own.refine(state, context), state)
    except FedVisionError as error:
        raise ConfigError(str(error)) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"[strategy] use = {config.strategy.use!r}: its work on the server fails with this model: "
            f"{with_kind(error)}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class QuerySize:
    """What a strategy's query moves."""

    use: str
    """Name of the statistic."""
    sent: int
    """Bytes of the tensors that travel to a client beside the model."""
    numbers: int
    """Numbers in an answer."""


def query_sizes(
    config: ExperimentConfig,
    strategy: FlowerStrategy,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> list[QuerySize]:
    """Return what the queries of a round move; arguments as ``rehearse`` takes them, which found no error."""
    data = _blank_images(config, image_shape, num_classes)
    trial = data.settings.place(model_with(model, {}))
    return [
        QuerySize(
            use=query.use,
            sent=sum(tensor.nbytes for tensor in query.tensors.values()),
            numbers=sum(array.size for array in answer.values()),
        )
        for query, answer in _answers(config, copy.deepcopy(strategy.inner), trial, data)
    ]


def _blank_images(config: ExperimentConfig, image_shape: tuple[int, int, int], num_classes: int) -> LocalData:
    """Return a client that has a blank image of each class."""
    settings = loop_settings(config, image_shape[2]).forward
    shard = Shard(
        images=np.zeros((num_classes, *image_shape), np.uint8),
        labels=settings.task.example_targets(num_classes, image_shape[:2]).numpy(),
        indices=np.arange(num_classes),
        further=absent(num_classes, config.model.inputs) if config.model.inputs else None,
    )
    held_out = shard if config.evaluation.holdout else None
    return LocalData(shard=shard, settings=settings, num_classes=num_classes, held_out=held_out)


def _answers(
    config: ExperimentConfig, own: RoundStrategy, trial: nn.Module, data: LocalData
) -> Iterator[tuple[Query, Answer]]:
    """Yield the queries of a strategy's last round with their answers over one client."""
    answers: list[Answer] = []
    while (query := own.query(config.rounds, config.rounds, tuple(answers))) is not None:
        sums = to_fixed_point(compute_statistic(query, trial, data))
        sent = query_codec.encode_sums(sums, len(data), query.bits)
        answers.append(query_codec.decode_reply(sent, query.bits).sums.values())
        yield query, answers[-1]


def rehearse_client_half(
    config: ExperimentConfig, strategy: Strategy, model: nn.Module, images: Batch, num_classes: int
) -> None:
    """Let a client half begin and compute its loss, where it has one of its own or may refuse the network.

    Args:
        config: The experiment.
        strategy: Its strategy; a copy of it is tried.
        model: The network as it begins, on the CPU; it stays as it is.
        images: float [B, channels, H, W].
        num_classes: C.

    Raises:
        ConfigError: It cannot, or the loss is not one number an image.
    """
    if not isinstance(strategy, FlowerStrategy):
        return
    half = strategy.inner.client
    if half.loss is ClientAlgorithm.loss and not half.rehearsed:
        return
    where = f"[strategy] use = {config.strategy.use!r}"
    own, trial = copy.deepcopy(strategy.inner), model_with(model, {})
    state = get_state(trial, ParameterGroups.of(model, config.model).shared)
    height, width = images.shape[2:]
    task = build_task(config.task)
    targets = task.example_targets(num_classes, (height, width))
    try:
        client_config = replace(own.configure(1, state, 0), constants=own.constant_tensors())
        # A client with images of one class: it lacks the others.
        counts = (len(images), *[0] * (num_classes - 1))
        request = TrainRequest(round=1, client=0, state=state, client_config=client_config, own_counts=counts)
        algorithm = own.client()
        training_mode(trial)
        trained = {name: p for name, p in trial.named_parameters() if p.requires_grad}
        algorithm.begin(trial, trained, request, {})
        algorithm.generator = seeding.torch_stream(config.seed, "trial")
        labels = targets[torch.arange(len(images)) % num_classes]
        with torch.no_grad():
            algorithm.survey(trial.eval(), [(images, labels)])
        training_mode(trial)
        loss = build_loss(config, torch.ones(num_classes, dtype=torch.int64))
        losses = algorithm.loss(trial, images, labels, loss)
    except ClientError as error:
        raise ConfigError(f"{where}: {error.cause}") from error
    except FedVisionError:
        raise
    except (Exception, SystemExit) as error:
        if not task.image_logits:
            raise ConfigError(
                f"{where} works on a row of logits an image, and [task] use = {config.task.use!r} has none; "
                "take a strategy that does not, such as 'fedavg', 'fedprox' or 'scaffold'"
            ) from error
        raise ConfigError(f"{where}: the loss of its client half fails here: {with_kind(error)}") from error
    if losses.shape != (len(images),):
        raise ConfigError(
            f"{where}: the loss of its client half is {list(losses.shape)}, not {[len(images)]}: one number "
            "an image"
        )
