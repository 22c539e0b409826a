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
    notices: tuple[str, ...] = ()
    """Sentences on what was written twice, in the file and on the command line, and which of them holds."""


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a TOML file with an optional ``[sweep]``.

    A sweep lists values for dotted keys, ``loss = [{use = "focal"}, {use = "cross-entropy"}]`` or
    ``seed = [1, 2, 3]``. A table may have a key ``name`` of its own, which serves as its label.

    Args:
        path: The file.
        overrides: ``"key=value"`` pairs. One for a key that the sweep lists replaces its values, and a notice
            says so; ``sweep.seed=[1, 2]`` lists other values.

    Raises:
        ConfigError: As for ``ExperimentConfig.load``, or two entries set one key, of which one would be lost.
    """
    table = tables.read(Path(path), ExperimentConfig.WHAT)
    try:
        given = tables.apply(table, overrides)
        axes = _axes(_table(table.pop("sweep", {})))
        _refuse_overlaps(table, axes, given)
        fixed = [key for key in given if axes.pop(key, None) is not None]
        variants = [_variant(table, axes, values) for values in itertools.product(*axes.values())]
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from error
    if len(dict(variants)) < len(variants):
        raise ConfigError(
            f"{path}: two experiments of the sweep have one label; give their tables a name = ..."
        )
    return Sweep(
        name=str(table.get("name", "experiment")),
        experiments=dict(variants),
        notices=tuple(f"--set {key} takes the place of the values in sweep.{key}" for key in fixed),
    )


def _table(sweep: Any) -> Mapping[str, Any]:
    if not isinstance(sweep, Mapping):
        raise ConfigError(f"sweep must be a table of lists, not {sweep!r}")
    return sweep


def _refuse_overlaps(table: Mapping[str, Any], axes: Mapping[str, list[Any]], given: Sequence[str]) -> None:
    """Refuse keys of which one lies in the other, so that one of them would be set and at once replaced.

    Raises:
        ConfigError: Both are named.
    """
    for axis in axes:
        for key in given:
            if key.startswith(f"{axis}."):
                raise ConfigError(
                    f"--set {key}: each value of sweep.{axis} replaces the whole {axis}; change "
                    f"sweep.{axis}, or set {axis} itself"
                )
            if axis.startswith(f"{key}.") and tables.holds(table, axis):
                raise ConfigError(
                    f"--set {key}: it holds {axis}, for which sweep.{axis} has values; leave one of them out"
                )
        for other in axes:
            if other.startswith(f"{axis}."):
                raise ConfigError(f"sweep.{other} lies in sweep.{axis}, which replaces it; keep one of them")


def _axes(sweep: Mapping[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """Flatten the sweep's nested tables to dotted keys."""
    axes: dict[str, list[Any]] = {}
    for key, values in sweep.items():
        if isinstance(values, Mapping):
            found = _axes(values, f"{prefix}{key}.")
        elif isinstance(values, list) and values:
            found = {prefix + key: values}
        else:
            raise ConfigError(f"sweep.{prefix}{key} must be a list of values, not {values!r}")
        if twice := axes.keys() & found.keys():
            raise ConfigError(f"sweep.{min(twice)} is there twice; keep one of them")
        axes |= found
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
    """Return what names a value in a folder's name: slashes, and dots alone, would lead elsewhere."""
    last = key.rpartition(".")[2]
    if isinstance(value, dict):
        text = str(value.pop("name", None) or value.get("use", key))
    else:
        text = value if isinstance(value, str) else f"{last}{value}"
    text = text.replace("/", "_")
    return text if text.strip(".") else last + text
