"""How far a model's probabilities can be trusted, from sums over what clients keep out of training.

Where the server has no images, clients alone can tell how often the final model is right by how sure it is.
What they send are counts: images, right ones and summed confidence by confidence, and how many images have
which score for each class. The sums over clients are those of one pass over all their images together, so the
calibration error and the areas under curves that follow are those of all images, not means of clients'.

Shape letters: B bins of confidence, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision.errors import ConfigError
from fedvision.tasks.calibration import Calibration
from fedvision.training.statistics import LocalData
from fedvision.types import Query, State

NAME = "calibration"
"""Of the statistic."""
MOST_CLASSES = 100
"""Up to so many classes a client's answer has histograms of scores, 16 kB a class; of more, which would be
larger than many a network, it has none, and there are no areas under curves."""


@torch.no_grad()
def calibration(*, model: nn.Module, data: LocalData, tensors: State) -> dict[str, torch.Tensor]:
    """Images kept out of training by how sure the model is, and scores by class: ``Calibration.sums``.

    ``clients`` [1] is 1 where there is any such image.

    Args:
        model: The network, in evaluation mode.
        data: The client's images.
        tensors: ``scale`` float64 [1]: probabilities are those of s z for the network's logits z; where it
            is left out, those of the loss.

    Raises:
        ConfigError: No images are kept out of training, or they have not one class each.
    """
    if data.held_out is None:
        raise ConfigError(f"{NAME} is of images kept out of training; set evaluation.holdout > 0")
    task = data.settings.task
    if not task.one_class:
        raise ConfigError(f"{NAME} is of images of one class each, which the task {task.name!r} has not")
    scale = float(tensors["scale"]) if "scale" in tensors else data.sharpness
    found = Calibration(data.num_classes, most_classes=MOST_CLASSES)
    for x, targets in data.of(data.held_out).batches():
        named, probabilities = task.decide(task.measured(model(x), data.num_classes, scale))
        found.add(probabilities.cpu().numpy(), named.cpu().numpy(), targets.cpu().numpy())
    sums = {name: torch.from_numpy(array) for name, array in found.sums().items()}
    return {"clients": torch.tensor([int(len(data.held_out) > 0)]), **sums}


def pooled(sums: Mapping[str, NDArray[Any]], num_classes: int) -> tuple[int, Calibration]:
    """Return how many clients have images kept out of training, and what these tell together.

    Args:
        sums: The answers to ``query``, added up; empty where nobody answered.
        num_classes: C.

    Raises:
        ValueError: They count no images.
    """
    if not sums:
        return 0, Calibration(num_classes)
    parts = {name: array for name, array in sums.items() if name != "clients"}
    found = Calibration.of_sums(parts, num_classes)
    images, right, sure = (parts[name] for name in ("images", "right", "confidence"))
    sound = (0 <= right) & (right <= images) & (0 <= sure) & (sure <= images)
    scores = parts.get("scores", images[None])
    all_there = scores.reshape(len(scores), -1).sum(1) == images.sum()
    if not (sound.all() and all_there.all() and (scores >= 0).all()):
        raise ValueError("the sums of the statistic calibration over all clients count no images")
    return int(np.clip(sums["clients"], 0, None).sum()), found


def query(scale: float) -> Query:
    """Return the query for the calibration of probabilities of s z."""
    return Query(use=NAME, tensors={"scale": torch.tensor([scale], dtype=torch.float64)})
