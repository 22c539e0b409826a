"""The reference of all configuration keys, from the dataclasses' own strings and the plug-ins' docstrings.

``python -m fedvision.cli.reference > docs/configuration.md`` writes it; a test keeps the file equal to it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fedvision import registry
from fedvision.config import ExperimentConfig
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.families import FAMILIES
from fedvision.plugin_folder import import_target
from fedvision.shared_keys import field_texts, key_texts
from fedvision.types import PluginSpec

_RUNTIME = {
    "num_classes",
    "in_channels",
    "image_size",
    "inputs",
    "in_features",
    "counts",
    "round",
    "rounds",
    "labels",
    "rng",
    "clients",
}
"""Arguments of factories that the program gives, not the experiment."""
_KINDS = {
    "data": "Data sources: `[data]`",
    "partition": "Partitions: `[partition]`",
    "model": "Models: `[model]`",
    "expansion": "Expansions of features: `model.expand`",
    "head": "Heads: `model.head`",
    "loss": "Losses: `[loss]`",
    "strategy": "Strategies: `[strategy]`",
    "update": "Update transforms: `[[update]]`",
    "schedule": "Learning-rate schedules: `training.schedule`",
    "sampler": "Samplers: `training.sampler`",
    "metric": "Metrics: `evaluation.metrics`",
}


def render() -> str:
    """Return the reference as Markdown."""
    parts = [_HEAD, "## The experiment's file", *_tables(ExperimentConfig, "")]
    for kind, title in _KINDS.items():
        parts += [
            f"## {title}",
            *(_plugin(name, registry.resolve(kind, name)) for name in registry.BUILTINS[kind]),
        ]
        for prefix, family in FAMILIES.get(kind, {}).items():
            # Not resolved: its library may not be installed.
            factory = registry.Factory(
                import_target(kind, prefix, family.target), {"name": ""}, family.target
            )
            parts.append(_plugin(prefix + (family.example if not family.others else "..."), factory))
    parts += ["## A client machine's file", *_tables(ClientMachineConfig, "")]
    return "\n\n".join(parts) + "\n"


_HEAD = """# Configuration

<!-- written by `python -m fedvision.cli.reference`; do not edit -->

Every key of the experiment's TOML file and of a client machine's. A key that is left out has the default
given here; a key that is unknown is an error that names the nearest one. `--set table.key=value` on the
command line sets any key. A table with `use` names a plug-in: its other keys are that plug-in's arguments,
listed under its name below."""


def _tables(cls: type[Any], prefix: str) -> Iterator[str]:
    """Yield a table of a dataclass's own keys, then those of the dataclasses in it."""
    texts, rows, nested = field_texts(cls), [], []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name == "args":
            continue
        of_each = typing.get_args(hints[field.name])[1:]
        if of_each and dataclasses.is_dataclass(of_each[0]):
            nested.append((typing.cast("type[Any]", of_each[0]), f"{prefix}{field.name}.NAME"))
            continue
        inner = _inner(field)
        if inner is not None:
            nested.append((inner, f"{prefix}{field.name}"))
            continue
        rows.append((f"{prefix}{field.name}", _default(field), texts.get(field.name, "")))
    if rows:
        yield _rows(rows)
    for inner, name in nested:
        yield f"### `[{name}]`\n\n{_one_line((inspect.getdoc(inner) or '').split(chr(10) * 2)[0])}"
        yield from _tables(inner, f"{name}.")


def _inner(field: dataclasses.Field[Any]) -> type[Any] | None:
    """Return the dataclass that a field holds as a table of its own, if it does."""
    if field.default_factory is dataclasses.MISSING:
        return None
    kind = type(field.default_factory())
    return kind if dataclasses.is_dataclass(kind) and kind is not PluginSpec else None


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _value(field.default)
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return _value(value.use if isinstance(value, PluginSpec) else value)
    return "required"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`" if not isinstance(value, Mapping) else "`{}`"


def _plugin(name: str, factory: registry.Factory) -> str:
    doc = inspect.getdoc(factory.call) or ""
    text = f"### `{name}`\n\n{_one_line(doc.split(chr(10) * 2)[0])}"
    rows = [
        (argument.name, "required" if argument.required else _value(argument.default), argument.text)
        for argument in _settable(factory)
    ]
    return f"{text}\n\n{_rows(rows)}" if rows else text


class Argument(NamedTuple):
    """One key of a plug-in's table."""

    name: str
    default: Any
    """None also where there is none."""
    required: bool
    text: str
    """What it does."""


def plugin_arguments(kind: str, use: str) -> list[Argument]:
    """Return the keys that an experiment may set of a plug-in, in the order of its parameters.

    Raises:
        PluginError: There is no such plug-in.
    """
    return _settable(registry.resolve(kind, use))


def _settable(factory: registry.Factory) -> list[Argument]:
    described = {**key_texts(factory.call), **_arguments(factory.call)}
    return [
        Argument(
            argument.name,
            None if argument.default is argument.empty else argument.default,
            argument.default is argument.empty,
            described.get(argument.name, ""),
        )
        for argument in inspect.signature(factory.call).parameters.values()
        if argument.kind is argument.KEYWORD_ONLY and argument.name not in {*_RUNTIME, *factory.preset}
    ]


def _arguments(call: Any) -> dict[str, str]:
    """Return the descriptions under "Args:" of a function, or of a class and its bases, by argument."""
    found: dict[str, str] = {}
    for owner in reversed(inspect.getmro(call)) if inspect.isclass(call) else (call,):
        lines = (inspect.getdoc(owner) or "").split("\n")
        inside, name = False, ""
        for line in lines:
            if not line.startswith(" "):
                inside = line == "Args:"
            elif inside and (start := re.match(r"    (\w+): (.*)", line)):
                name = start[1]
                found[name] = start[2]
            elif inside and name:
                found[name] += f" {line.strip()}"
    return found


def _rows(rows: list[tuple[str, str, str]]) -> str:
    lines = ["| key | default | |", "|---|---|---|"]
    lines += [f"| `{key}` | {default} | {_cell(text)} |" for key, default, text in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


if __name__ == "__main__":
    print(render(), end="")
