"""An experiment before any training, in text: who trains on what, the loss by class, what a round sends."""

from __future__ import annotations

import math

import numpy as np
import torch

from fedvision import seeding
from fedvision.data.box_facts import box_facts
from fedvision.data.own_classes import holds_boxes
from fedvision.data.targets import several
from fedvision.data.transforms import input_shape
from fedvision.experiment import Experiment
from fedvision.flower.strategy import FlowerStrategy
from fedvision.formatting import listed, plural, size
from fedvision.inputs import for_trial
from fedvision.losses.counts import mixed
from fedvision.models.freezing import training_mode
from fedvision.models.parameter_groups import ParameterGroups, network_bytes
from fedvision.models.state import get_state, size_in_bytes
from fedvision.reporting.skew_report import Whole, skew_report
from fedvision.server.rehearsal import query_sizes
from fedvision.training.client_trainer import build_loss


def inspect_experiment(experiment: Experiment) -> str:
    """Return in text who trains on what, what the loss makes of it, and what a round will send."""
    split, classes = experiment.split, experiment.dataset.classes
    counted = "labels" if several(split.labels) else f"{experiment.task.example}s"
    counted = "boxes" if holds_boxes(split.labels) else counted
    sizes = images = None
    if counted != "images":
        sizes = np.array([split.size(int(client)) for client in split.shown], np.int64)
        images = round(sizes.mean() * len(split.clients))
    state_bytes = size_in_bytes(
        get_state(experiment.model, ParameterGroups.of(experiment.model, experiment.config.model).shared)
    )
    queries = _queries(experiment, state_bytes)
    text = skew_report(
        split.counts(split.shown),
        classes,
        whole=Whole(
            len(split.clients),
            split.totals,
            split.exact,
            split.shown,
            split.distinct,
            split.names,
            counted,
            sizes,
            images,
        ),
        weights=_loss_by_class(experiment),
        state_bytes=None if queries else state_bytes,
        network_bytes=network_bytes(experiment.model),
        cohort=_cohort(experiment),
        left_out=len(split.left_out),
        held_out=split.held_out,
    )
    train = experiment.dataset.train.labels
    boxes = box_facts(train) if holds_boxes(train) else []
    return "\n".join([text, *queries, _input(experiment), *boxes, *experiment.notices()])


def _queries(experiment: Experiment, state_bytes: int) -> list[str]:
    """Return what a round without training moves; nothing of one that trains."""
    strategy, config = experiment.strategy, experiment.config
    if not isinstance(strategy, FlowerStrategy) or strategy.trains:
        return []
    height, width, channels = experiment.dataset.train.images.shape[1:]
    classes = len(experiment.dataset.classes)
    found = query_sizes(config, strategy, experiment.model, (height, width, channels), classes)
    down = sum(state_bytes + one.sent for one in found)
    names = listed([f"{one.use} ({size(8 * one.numbers)} at most)" for one in found])
    cohort = plural(_cohort(experiment) or 0, "client")
    return ["", f"nobody trains: a round sends {size(down)} to each of {cohort} and asks it for {names}"]


def _input(experiment: Experiment) -> str:
    """Return what the network gets of an image."""
    transforms, image = experiment.config.transforms, experiment.dataset.train.images.shape[1:]
    shown = " x ".join(map(str, input_shape(transforms, image)))
    how = f", {transforms.interpolation}" if transforms.size else ""
    mean, std = (", ".join(f"{one:g}" for one in values) for values in (transforms.mean, transforms.std))
    return (
        f"the network gets {shown} of images of {' x '.join(map(str, image))}{how}: "
        f"(pixel / 255 - {mean}) / {std}"
    )


def _loss_by_class(experiment: Experiment) -> dict[str, list[float]]:
    """Return the loss [C] of an image of each class at even logits, as the experiment's prior makes it.

    With another prior than ``"global"`` it is each client's own: lowest, median and highest over the clients
    that have the class, of at most 100 of them. Nothing where outputs are more than one tensor.
    """
    split, classes = experiment.split, len(experiment.dataset.classes)
    image = experiment.dataset.train.images.shape[1:]
    labels = experiment.task.example_targets(classes, image[:2])
    training_mode(experiment.model, False)
    with torch.no_grad():
        black = torch.zeros(1, *input_shape(experiment.config.transforms, image))
        one = experiment.model(for_trial(black, experiment.config.model.inputs))
    training_mode(experiment.model)
    if not isinstance(one, torch.Tensor):
        return {}
    logits = one.new_zeros(classes, *one.shape[1:])
    config, federation = experiment.config, torch.from_numpy(split.distinct)
    if config.loss.prior == "global":
        loss = build_loss(config, federation)
        return {"loss at even logits": loss(logits, labels).tolist()}
    few = split.shown[np.linspace(0, len(split.shown) - 1, min(len(split.shown), 100)).astype(np.int64)]
    counts = split.counts(few)
    seen = torch.from_numpy(counts)
    if config.loss.prior == "mixed":
        seen = torch.stack([mixed(federation, own, config.loss.local_share) for own in seen])
    losses = (build_loss(config, own) for own in seen)
    rows = [loss(logits, labels).tolist() for loss in losses]
    values = np.where(counts > 0, np.array(rows, np.float64), np.nan)
    having = [column[~np.isnan(column)] for column in values.T]
    return {
        f"loss, {name}": [float(np.percentile(own, place)) if len(own) else math.nan for own in having]
        for name, place in (("lowest", 0), ("median", 50), ("highest", 100))
    }


def _cohort(experiment: Experiment) -> int | None:
    """Return the number of clients a round, where the strategy is ours and has one."""
    if not isinstance(experiment.strategy, FlowerStrategy):
        return None
    rng = seeding.numpy_stream(experiment.config.seed, "select", 1)
    return len(experiment.strategy.inner.select(1, range(len(experiment.split.clients)), rng))
