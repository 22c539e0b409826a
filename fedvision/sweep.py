"""Sweeps: one TOML file whose ``[sweep]`` lists values for some keys stands for all their combinations."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvision import tables
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Experiments that differ in a few keys: the combinations of a file's ``[sweep]``, or the file alone."""

    name: str
    """The file's name; each experiment's name is this one and its label."""
    experiments: Mapping[str, ExperimentConfig]
    """By label, such as ``"focal-seed2"``; a file without ``[sweep]`` has one, labelled ``""``."""


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a TOML file with an optional ``[sweep]``.

    A sweep lists values for dotted keys, ``loss = [{use = "focal"}, {use = "cross-entropy"}]`` or
    ``seed = [1, 2, 3]``. A table may have a key ``name`` of its own, which serves as its label.

    Raises:
        ConfigError: As for ``ExperimentConfig.load``.
    """
    table = tables.read(Path(path), ExperimentConfig.WHAT)
    try:
        sweep = table.pop("sweep", {})
        for override in overrides:
            sweep.pop(tables.override(table, override), None)
        axes = _axes(sweep)
        variants = [_variant(table, axes, values) for values in itertools.product(*axes.values())]
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from error
    if len(dict(variants)) < len(variants):
        raise ConfigError(
            f"{path}: two experiments of the sweep have one label; give their tables a name = ..."
        )
    return Sweep(name=str(table.get("name", "experiment")), experiments=dict(variants))


def _axes(sweep: Mapping[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """Flatten the sweep's nested tables to dotted keys."""
    axes: dict[str, list[Any]] = {}
    for key, values in sweep.items():
        if isinstance(values, Mapping):
            axes |= _axes(values, f"{prefix}{key}.")
        elif isinstance(values, list) and values:
            axes[prefix + key] = values
        else:
            raise ConfigError(f"sweep.{prefix}{key} must be a list of values, not {values!r}")
    return axes


def _variant(
    table: Mapping[str, Any], axes: Mapping[str, list[Any]], values: Sequence[Any]
) -> tuple[str, ExperimentConfig]:
    merged = copy.deepcopy(dict(table))
    labels = []
    for key, value in zip(axes, copy.deepcopy(list(values)), strict=True):
        labels.append(_label(key, value))
        tables.assign(merged, key, value)
    config = ExperimentConfig.from_dict(merged)
    label = "-".join(labels)
    return label, dataclasses.replace(config, name=f"{config.name} {label}".strip())


def _label(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return str(value.pop("name", None) or value.get("use", key))
    return value if isinstance(value, str) else f"{key.rpartition('.')[2]}{value}"
