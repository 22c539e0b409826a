"""What a person should know of an experiment's data before it runs, in sentences."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedvision import registry
from fedvision.data.naming import alike_notice
from fedvision.data.partition.partitioners import values_of
from fedvision.data.targets import ClassCounter, count
from fedvision.formatting import listed, plural, whole

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig
    from fedvision.data.dataset import Dataset
    from fedvision.data.partition.split import Split


def measurement_notices(
    config: ExperimentConfig,
    dataset: Dataset,
    personal: Sequence[str] = (),
    counter: ClassCounter = count,
) -> list[str]:
    """Return that nothing is measured and which key changes it, or which classes have no test images.

    Args:
        config: The experiment.
        dataset: Its images.
        personal: Tensors of the model that stay on the clients, without which the server measures nothing.
        counter: Returns the class counts of targets.
    """
    if personal:
        return [_personal(config, personal)]
    if dataset.test is None:
        return [] if config.evaluation.holdout else [_unmeasured(config)]
    tested = counter(dataset.test.labels, len(dataset.classes))
    names = [dataset.classes[c] for c in np.flatnonzero(tested == 0).tolist()]
    if not names:
        return []
    return [f"there are no test images of {listed(names)}; balanced accuracy leaves them out"]


def _personal(config: ExperimentConfig, names: Sequence[str]) -> str:
    model = config.model
    key = f"personal = {list(model.personal)}" if model.personal else f"shared = {model.shared!r}"
    measured = "each client measures its personal model on its own held-out images"
    if config.strategy.args.get("fraction", 1.0) < 1:
        measured += ", with the first values until it has trained once"
    if not config.evaluation.holdout:
        measured = "nothing measures the personal models; set evaluation.holdout = 0.2, and clients do"
    return (
        f"model.{key} keeps {listed(list(names), 2)} on the clients: in model.safetensors these are as the "
        f"model began, the server has no whole model, and {measured}"
    )


def _unmeasured(config: ExperimentConfig) -> str:
    """Return the sentence for a run without images to measure on, with the keys that this source knows."""
    keys = "evaluation.holdout = 0.2"
    if "validation" in inspect.signature(registry.resolve("data", config.data.use).call).parameters:
        keys = f"data.validation = 0.2 (for the server) or {keys} (on the clients)"
    return f"nothing will be measured: there are no test images and no holdout; set {keys}"


def column_notices(config: ExperimentConfig, dataset: Dataset) -> list[str]:
    """Return that values which make clients or groups look like one: what they share would be apart.

    Args:
        config: The experiment.
        dataset: Its images.
    """
    partition, columns = config.partition, dataset.train.columns
    named = [str(partition.args.get("name"))] if partition.use == "column" else []
    notices: list[str] = []
    for name in dict.fromkeys([*named, dataset.train.group]):
        if name in columns:
            values, _ = values_of(columns[name], f"column {name!r}")
            notices += alike_notice(f"values of the column {name!r}", values)
    return notices


def split_notices(split: Split, classes: Sequence[str]) -> list[str]:
    """Return where rare classes are, vacant classes, clients with a single image or with shared images.

    Args:
        split: Which client trains on which images, at least one client.
        classes: Names [C].
    """
    notices = _tail_notices(split, classes)
    if vacant := [classes[c] for c in np.flatnonzero(split.totals == 0).tolist()]:
        notices.append(f"no client trains on images of {listed(vacant)}; the model cannot learn it")
    if split.lazy:
        images = len(split.labels) - len(split.left_out) - split.held_out
        notices.append(
            f"{plural(len(split.clients), 'client')} draw their images from the same {whole(images)}: an "
            f"image belongs to {split.totals.sum() / images:,.1f} of them on average"
        )
    elif single := [f"client {number}" for number, part in enumerate(split.clients) if len(part) == 1]:
        notices.append(f"with a single image each to train on: {listed(single)}")
    return notices


def _tail_notices(split: Split, classes: Sequence[str]) -> list[str]:
    """Return at which clients the classes are that ``partition.tail_clients`` brought together."""
    if not split.tail:
        return []
    having = np.flatnonzero(split.counts()[:, list(split.tail)].sum(axis=1))
    names = listed([classes[c] for c in split.tail])
    where = listed([str(client) for client in having.tolist()], 10)
    word = "client" if len(having) == 1 else "clients"
    return [f"training images of {names} are at {word} {where} alone (partition.tail_clients)"]
