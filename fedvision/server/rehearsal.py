"""Statistics and refinement tried before a run, on blank images, so that what is wrong ends it there."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedvision import seeding
from fedvision.aggregation.fixed_point import from_fixed_point, to_fixed_point
from fedvision.algorithms.base import ServerContext
from fedvision.config import ExperimentConfig
from fedvision.data.shards import Shard
from fedvision.errors import ConfigError, FedVisionError, with_kind
from fedvision.flower.strategy import FlowerStrategy
from fedvision.models.meta import model_with
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import get_state
from fedvision.server.checks import check_state
from fedvision.training.client_trainer import loop_settings
from fedvision.training.statistics import LocalData, compute_statistic
from fedvision.types import PluginSpec


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
    requested = [PluginSpec(use=use) for use in config.evaluation.statistics]
    own = copy.deepcopy(strategy.inner) if isinstance(strategy, FlowerStrategy) and strategy.refines else None
    spec = None if own is None else own.query(config.rounds, config.rounds)
    if own is None and not requested:
        return
    settings = loop_settings(config, image_shape[2]).forward
    shard = Shard(
        images=np.zeros((num_classes, *image_shape), np.uint8),
        labels=settings.task.example_targets(num_classes, image_shape[:2]).numpy(),
        indices=np.arange(num_classes),
    )
    data = LocalData(shard=shard, settings=settings, num_classes=num_classes)
    try:
        trial = settings.place(model_with(model, {}))
        for one in requested:
            to_fixed_point(compute_statistic(one, trial, data))
        if own is None:
            return
        sums = (
            None if spec is None else from_fixed_point(to_fixed_point(compute_statistic(spec, trial, data)))
        )
        state = get_state(model, ParameterGroups.of(model, config.model).shared)
        context = ServerContext(
            round=config.rounds,
            rounds=config.rounds,
            statistic=sums,
            class_counts=(1,) * num_classes,
            make_model=partial(model_with, model),
            generator=seeding.torch_stream(config.seed, "refine", 0),
        )
        check_state(config.rounds, own.refine(state, context), state)
    except FedVisionError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        raise ConfigError(
            f"[strategy] use = {config.strategy.use!r}: its work on the server fails with this model: "
            f"{with_kind(error)}"
        ) from error
