"""The final model once more on the server's test images: those that it gets wrong are kept for the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvision.data.dataset import ImageSet
from fedvision.data.shards import Shard
from fedvision.data.targets import one_class
from fedvision.runs import worst_images
from fedvision.runs.folder import RunFolder
from fedvision.runs.misclassified import choose
from fedvision.tasks.calibration import Calibration
from fedvision.training.client_trainer import ClientTrainer
from fedvision.training.evaluate import evaluate, outputs_of, predict


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the final model is looked at with."""

    seen: ImageSet
    """What it measures on: the test images, or their features."""
    pictures: NDArray[np.uint8]
    """uint8 [N, H, W, channels]: the images themselves, which are kept."""
    classes: tuple[str, ...]
    """Class names [C]."""
    train_counts: NDArray[np.int64]
    """What there is of each class in training [C]."""
    sharpness: float
    """s, with which the model predicts softmax(s z)."""


def keep_wrong(folder: RunFolder, trainer: ClientTrainer, test: Measured) -> Calibration | None:
    """Keep images that the model gets wrong, and return what its probabilities tell.

    Args:
        folder: The run's.
        trainer: Its network is the final model.
        test: The images.

    Returns:
        None where no image has one class, of which a probability could be told.

    Raises:
        RecordError: The disk is full or refuses.
    """
    if trainer.task.draws:
        _keep_worst(folder, trainer, test)
        return None
    if not one_class(test.seen.labels) or not trainer.task.decides:
        return None
    predicted, confidence, calibration = predict(
        trainer.model,
        Shard.whole(test.seen),
        trainer.settings.forward,
        batch_size=trainer.config.evaluation.batch_size,
        num_classes=len(test.classes),
        sharpness=test.sharpness,
    )
    labels = test.seen.labels
    wall = choose(labels, predicted, confidence, test.train_counts)
    folder.write_mistakes(test.pictures[wall], labels[wall], predicted[wall], confidence[wall])
    return calibration


def _keep_worst(folder: RunFolder, trainer: ClientTrainer, test: Measured) -> None:
    """Let the task draw the images that went worst; a model that gets nothing wrong has none."""
    task, settings, shard = trainer.task, trainer.settings.forward, Shard.whole(test.seen)
    stats = evaluate(
        trainer.model,
        shard,
        settings,
        batch_size=trainer.config.evaluation.batch_size,
        num_classes=len(test.classes),
        sharpness=test.sharpness,
    ).stats
    wrong = task.misses(stats, test.seen.labels, len(test.classes))
    chosen = of = np.empty(0, np.int64)
    if wrong is not None:
        chosen, of = worst_images.choose_worst(wrong, test.train_counts)
    if not len(chosen):
        worst_images.forget(folder.path)
        return
    images, targets = shard.batch(chosen)
    outputs = outputs_of(trainer.model, images, settings, shard.beside(chosen))
    logits = task.measured(outputs, len(test.classes), test.sharpness)
    drawn = task.draw(test.pictures[chosen], logits, targets, of, test.classes)
    worst_images.write(folder.path, worst_images.WorstImages(classes=of, drawings=drawn))
