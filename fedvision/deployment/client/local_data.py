"""A client's own images, as its file names them, under the experiment's labels."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fedvision import registry
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset
from fedvision.data.naming import composed
from fedvision.data.relabel import relabel
from fedvision.data.sources.build import build_dataset
from fedvision.data.targets import form
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.errors import DataError
from fedvision.tasks.base import Task
from fedvision.types import PluginSpec


def open_own(config: ClientMachineConfig) -> Dataset:
    """Open the client's images under its own labels.

    Raises:
        ConfigError: The data source is unknown or its arguments or files are wrong.
    """
    args = dict(config.data.args)
    if config.cache and "cache" in registry.parameters("data", config.data.use):
        args.setdefault("cache", config.cache)
    return build_dataset(PluginSpec(use=config.data.use, args=args))


def check_form(dataset: Dataset, config: ClientMachineConfig, task: Task) -> None:
    """Check that a client's images have one class or several labels, as the experiment's task needs it.

    Raises:
        DataError: They have not.
    """
    if not task.fits(dataset.train.labels):
        raise DataError(
            f"the experiment's task {task.name!r} needs {task.targets}, and this client's [data] use = "
            f"{config.data.use!r} has {form(dataset.train.labels)}"
        )


def stamp(config: ClientMachineConfig) -> str | None:
    """Return what changes whenever a file of the client's images does: names, sizes and times of change.

    None where the source names no file that is there: changes of its images are not noticed then.
    """
    found = hashlib.sha256()
    named = [Path(value) for value in config.data.args.values() if isinstance(value, str) and value]
    there = [path for path in named if path.exists()]
    for path in there:
        _stamp_file(found, path)
        for folder, inner, files in os.walk(path):
            inner.sort()
            for name in sorted(files):
                _stamp_file(found, Path(folder, name))
    return found.hexdigest() if there else None


def _stamp_file(found: hashlib._Hash, path: Path) -> None:
    try:
        facts = path.stat()
    except OSError:
        return  # a link to nowhere, or a file that was removed just now
    size = 0 if path.is_dir() else facts.st_size
    found.update(f"{path}\0{size}\0{facts.st_mtime_ns}\0".encode(errors="surrogateescape"))


def under_classes(dataset: Dataset, config: ClientMachineConfig, classes: tuple[str, ...] | None) -> Dataset:
    """Return the images under the experiment's labels; without a list of classes they stay as they are.

    Raises:
        DataError: As for ``relabel``.
    """
    return dataset if classes is None else relabel(dataset, config.data.label_map, classes)


def known_classes(experiment: ExperimentConfig) -> tuple[str, ...] | None:
    """Return the experiment's class names where it lists them (``data.classes``), else None."""
    if experiment.data.use == "digits":  # every installation has them
        return tuple(map(str, range(10)))
    names = experiment.data.args.get("classes")
    return tuple(composed(str(name)) for name in names) if isinstance(names, list | tuple) else None
