"""A task tried before a run with the experiment's loss and network, so that a misfit is one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, FedVisionError, with_kind
from fedvision.inputs import Batch
from fedvision.models.freezing import training_mode
from fedvision.tasks.base import Task
from fedvision.tasks.observed import Observed
from fedvision.training.client_trainer import build_loss


def check_task(
    config: ExperimentConfig, task: Task, model: nn.Module, images: Batch, num_classes: int
) -> None:
    """Let a task count, weigh and measure some images of one class each.

    Args:
        config: The experiment.
        task: Its task.
        model: The network as it begins, on the CPU; it stays as it is.
        images: float [B, channels, H, W].
        num_classes: C.

    Raises:
        ConfigError: The loss is not one number an image, or the counts do not fit the task's tables.
    """
    height, width = images.shape[2:]
    try:
        targets = task.example_targets(num_classes, (height, width))[torch.arange(len(images)) % num_classes]
        outputs = _outputs(model, images)
        losses = build_loss(config, torch.ones(num_classes, dtype=torch.int64))(outputs, targets)
        observed = task.observe(task.measured(outputs, num_classes), targets, num_classes)
        counts = task.class_counts(targets.numpy(), num_classes)
    except FedVisionError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"[task] use = {config.task.use!r} does not work with [loss] use = {config.loss.use!r} and "
            f"[model] use = {config.model.use!r}: {with_kind(error)}"
        ) from error
    found = {
        f"its loss with [loss] use = {config.loss.use!r}": (losses, [len(images)], "one number an image"),
        "the loss of its observe": (observed.loss, [], "the sum over the batch"),
        "its class_counts": (torch.from_numpy(np.asarray(counts)), [num_classes], "a number for each class"),
    }
    for problem in (*_misshapen(found), *_outside(observed, task, num_classes, len(images))):
        raise ConfigError(f"[task] use = {config.task.use!r}: {problem}")


@torch.no_grad()
def _outputs(model: nn.Module, images: Batch) -> Any:
    training_mode(model, False)
    try:
        return model(images)
    finally:
        training_mode(model)


def _misshapen(found: dict[str, tuple[Any, list[int], str]]) -> Iterator[str]:
    for what, (tensor, shape, meaning) in found.items():
        if not isinstance(tensor, torch.Tensor):
            yield f"{what} is {type(tensor).__name__}, not a tensor {shape}: {meaning}"
        elif list(tensor.shape) != shape:
            yield f"{what} is {list(tensor.shape)}, not {shape}: {meaning}"


def _outside(observed: Observed, task: Task, num_classes: int, images: int) -> Iterator[str]:
    """Yield what is wrong with cells int64 [T n] of the task's tables, and with rows int64 [M, W]."""
    cells, rows = observed.cells, observed.rows
    shape = task.stats_shape(num_classes)
    size, tables = int(np.prod(shape)), shape[0]
    if cells.dtype != torch.int64 or cells.dim() != 1 or len(cells) % tables:
        yield f"the cells of its observe are {cells.dtype} {list(cells.shape)}, not int64 [{tables} n]"
    elif len(cells) and not 0 <= int(cells.min()) <= int(cells.max()) < size:
        yield f"the cells of its observe are {int(cells.min())} to {int(cells.max())}, not 0 to {size - 1}"
    if (rows is not None) != bool(task.row_width):
        yield f"its observe returns {'no ' * (rows is None)}rows, and its row_width is {task.row_width}"
    elif rows is not None:
        if rows.dtype != torch.int64 or rows.dim() != 2 or rows.shape[1] != task.row_width:
            found = f"{rows.dtype} {list(rows.shape)}"
            yield f"the rows of its observe are {found}, not int64 [M, {task.row_width}]"
        elif len(rows) and (rows[0, 0] < 0 or rows[-1, 0] >= images or (rows[:, 0].diff() < 0).any()):
            yield f"the rows of its observe do not begin with rising numbers of {images} images"
