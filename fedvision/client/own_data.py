"""A client's own images, as its file names them, under the experiment's labels."""

from __future__ import annotations

from fedvision import registry
from fedvision.client.config import ClientConfig
from fedvision.config import ExperimentConfig
from fedvision.data.images import Dataset
from fedvision.data.naming import composed
from fedvision.data.relabel import relabel
from fedvision.types import PluginSpec


def open_own(config: ClientConfig) -> Dataset:
    """Open the client's images under its own labels.

    Raises:
        ConfigError: The data source is unknown or its arguments or files are wrong.
    """
    args = dict(config.data.args)
    if config.cache and "cache" in registry.parameters("data", config.data.use):
        args.setdefault("cache", config.cache)
    dataset: Dataset = registry.build("data", PluginSpec(use=config.data.use, args=args))
    return dataset


def under_classes(dataset: Dataset, config: ClientConfig, classes: tuple[str, ...] | None) -> Dataset:
    """Return the images under the experiment's labels; without a list of classes they stay as they are.

    Raises:
        DataError: As for ``relabel``.
    """
    return dataset if classes is None else relabel(dataset, config.data.label_map, classes)


def known_size(experiment: ExperimentConfig) -> tuple[int, int, int] | None:
    """Return (H, W, channels) where the experiment says what images its clients have, else None."""
    found = [experiment.data.args.get(name) for name in ("height", "width", "channels")]
    if not isinstance(found[0], int) or not isinstance(found[1], int):
        return None
    return found[0], found[1], found[2] if isinstance(found[2], int) else 3


def known_classes(experiment: ExperimentConfig) -> tuple[str, ...] | None:
    """Return the experiment's class names where it lists them (``data.classes``), else None."""
    names = experiment.data.args.get("classes")
    return tuple(composed(str(name)) for name in names) if isinstance(names, list | tuple) else None
