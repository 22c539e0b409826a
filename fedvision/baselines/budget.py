"""The budget of a baseline: every training image is seen as often as in the federated run.

A client that works in all rounds makes alone exactly its steps in the federated run. Where each round draws a
share of the clients, a client alone trains in that share of the rounds, spread evenly so that it goes through
the whole schedule of the learning rate, and so does the client that has all images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedvision.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the clients of a federated run have trained."""

    rounds: int
    """R, the rounds that it has."""
    trainings: int
    """Clients' trainings that were used, over all rounds."""
    images: int
    """Images of the clients of all these trainings; one counts as often as its client trained."""

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Work:
        """Sum the records of a run's rounds."""
        return cls(
            rounds=len(records),
            trainings=sum(len(record["clients"]) for record in records),
            images=sum(int(record["examples"]) for record in records),
        )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When and how long one client trains in a baseline."""

    rounds: tuple[int, ...]
    """The rounds in which it trains, rising; their learning rates are those of the federated run."""
    training: TrainingConfig
    """Its local training."""

    def passes(self, images: int) -> int:
        """Return how many images pass in training, of a client that has so many."""
        training = self.training
        one = training.steps * training.batch_size if training.steps else training.epochs * images
        return one * len(self.rounds)


def local_budget(training: TrainingConfig, work: Work, *, clients: int, images: float) -> Budget:
    """Return the budget of each client alone.

    Args:
        training: The experiment's local training.
        work: What its clients have trained.
        clients: K.
        images: Training images of all clients, those that several have counted for each.
    """
    times = work.trainings / clients if training.steps else work.images / images
    return Budget(rounds=_spread(work.rounds, times), training=training)


def central_budget(training: TrainingConfig, work: Work, *, images: int) -> Budget:
    """Return the budget of one client that has all images.

    Args:
        training: The experiment's local training.
        work: What its clients have trained.
        images: Training images, each counted once.
    """
    if training.steps:
        steps = max(1, round(work.trainings * training.steps / work.rounds))
        return Budget(rounds=_spread(work.rounds, work.rounds), training=replace(training, steps=steps))
    times = work.images / images  # that each image was at work
    epochs = max(1, round(training.epochs * times / work.rounds)) if times > work.rounds else training.epochs
    return Budget(rounds=_spread(work.rounds, times), training=replace(training, epochs=epochs))


def _spread(rounds: int, times: float) -> tuple[int, ...]:
    """Return so many of the rounds, at least one and at most all, evenly spaced."""
    count = min(rounds, max(1, round(times)))
    places = np.floor((np.arange(count) + 0.5) * rounds / count).astype(int) + 1
    return tuple(places.tolist())
