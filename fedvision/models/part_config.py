"""Parts of a network: networks inside it that ``[model]`` names, each with its own weights and training.

A part is a name, as in ``model.use``, or a table; ``"none"`` is no part. Its own name is that of its key; a
part of a part has both, ``extractor.reads``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedvision import registry
from fedvision.config import ModelConfig
from fedvision.tables import build, require
from fedvision.types import PluginSpec

_TRAINED = re.compile(r"all|none|lora|last:[1-9][0-9]*")


@dataclass(frozen=True, kw_only=True)
class PartConfig(PluginSpec):
    """A network inside another; its further keys go to its factory."""

    name: str = ""
    """Of the part, dotted: ``"extractor.reads"``."""
    weights: str = ""
    """The part begins with this file, run folder or library's weights, as ``model.weights``."""
    train: str = "all"
    """What is trained of it: ``all``, ``none``, the ``last:N`` units, or an adapter beside each layer
    (``lora``)."""
    layer: str = ""
    """Of an extractor: the layer whose output are its tokens; empty finds the last one."""
    scale: tuple[float, ...] = ()
    """What normalised images are multiplied by for this part, per channel or one for all. It is chosen, with
    ``shift``, where the part's weights were trained with another mean and deviation than another part's."""
    shift: tuple[float, ...] = ()
    """What is added after that."""

    @property
    def key(self) -> str:
        """The part's dotted key in the experiment."""
        return f"model.{self.name}"


def part(name: str, table: Any) -> PartConfig:
    """Return what an experiment says of a part.

    Args:
        name: The part's, dotted.
        table: A network's name, or a table with ``use``.

    Raises:
        ConfigError: It is neither, or a key is of another type or out of range.
    """
    key = f"model.{name}"
    require(not isinstance(table, Mapping) or "name" not in table, f"{key}.name", "is no key; leave it out")
    found = replace(build(PartConfig, table, key), name=name)
    require(
        _TRAINED.fullmatch(found.train) is not None,
        f"{key}.train",
        f"must be 'all', 'none', 'last:N' with N >= 1, or 'lora', not {found.train!r}",
    )
    require(
        len(found.scale) == len(found.shift) in (0, 1, 3)
        and 0 not in found.scale
        and all(map(math.isfinite, (*found.scale, *found.shift))),
        f"{key}.scale",
        "and shift must be as many finite numbers, one or one for each of three channels, scale not 0",
    )
    return found


def parts(config: PluginSpec, within: str = "") -> dict[str, PartConfig]:
    """Return the parts of a network by name, each before its own.

    Args:
        config: ``[model]`` of an experiment, or a part.
        within: The part's name with a dot; empty for ``[model]``.

    Raises:
        ConfigError: A part's table is wrong.
    """
    found: dict[str, PartConfig] = {}
    for key in _keys(config.use):
        if config.args.get(key) not in (None, "none"):
            one = part(within + key, config.args[key])
            found |= {one.name: one, **parts(one, f"{one.name}.")}
    return found


def adapted(config: ModelConfig) -> bool:
    """Return whether some of a network is trained by adapters."""
    return config.train == "lora" or any(one.train == "lora" for one in parts(config).values())


def without(config: ModelConfig, *keys: str) -> ModelConfig:
    """Return ``[model]`` with some keys of all parts left out."""

    def stripped(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in table.items() if key not in keys}

    return replace(config, args=_changed(config.use, config.args, "", stripped))


def with_constants(config: ModelConfig, constants: Mapping[str, Mapping[str, Any]]) -> ModelConfig:
    """Return ``[model]`` with further keys of some parts, by the part's name."""

    def told(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
        return {**table, **constants.get(name, {})}

    return replace(config, args=_changed(config.use, config.args, "", told))


def with_weights(config: ModelConfig, files: Mapping[str, str]) -> ModelConfig:
    """Return ``[model]`` whose parts begin with these files, by the part's name, and no others."""

    def renamed(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
        others = {key: value for key, value in table.items() if key != "weights"}
        return {**others, "weights": files[name]} if name in files else others

    return replace(config, args=_changed(config.use, config.args, "", renamed))


def _changed(
    use: str,
    table: Mapping[str, Any],
    within: str,
    change: Callable[[str, Mapping[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """Return a network's keys with the tables of its parts changed, and of theirs."""
    changed = dict(table)
    for key in _keys(use):
        given, name = table.get(key), within + key
        inner = {"use": given} if isinstance(given, str) else given
        if isinstance(inner, Mapping):
            found = _changed(str(inner.get("use", "")), change(name, inner), f"{name}.", change)
            changed[key] = given if found == inner else found
    return changed


def _keys(use: str) -> tuple[str, ...]:
    builtin = registry.BUILTINS["model"].get(use)
    return builtin.parts if builtin else ()
