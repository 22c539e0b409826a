"""``fedvision new NAME [--data SOURCE]``: an experiment's file with every key, its default and what it does.

The comments are the strings under the dataclasses' fields and the plug-ins' docstrings, as in
``docs/configuration.md``, so that they have no other keys than there are.
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvision import registry, tables
from fedvision.errors import ConfigError
from fedvision.formatting import typed
from fedvision.streams import show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_SIZE = 64
"""Pixels a side of images that have to be cut to one size."""
_HEAD = """\
# An experiment of fedvision: `fedvision inspect {file}` shows its data, `fedvision simulate {file}` runs it.
#
# A line that begins with # and a key holds the default: take the # away to change it.
# `fedvision list` shows the options of `use =`."""


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("new", description="write an experiment's TOML file, with all keys explained")
    parser.add_argument("name", metavar="NAME", help="the experiment's name, and its file's without .toml")
    parser.add_argument(
        "--data",
        dest="source",
        default="digits",
        metavar="SOURCE",
        help="a folder of images, an .npz or .csv file, or a name of `fedvision list data` (default: digits)",
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="training.lr=0.1"
    )
    parser.set_defaults(call=_new)


def _new(options: argparse.Namespace) -> None:
    file = Path(options.name if options.name.endswith(".toml") else f"{options.name}.toml")
    text = write_experiment(file, options.source, options.overrides)
    try:
        with file.open("x", encoding="utf-8") as page:
            page.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{file}: the file is there already; give another name, or move it away") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{file}: it cannot be written: {why}; give a name in another folder") from error
    show(f"{file} is written; fedvision simulate {typed(file)} runs it", recorded=str(file))


def write_experiment(file: Path, source: str, overrides: Sequence[str] = ()) -> str:
    """Return an experiment's TOML with all keys: those that are set, and as comments the others' defaults.

    Args:
        file: Its file, whose name without suffix is the experiment's.
        source: A folder of images, an .npz or .csv file, or an option of ``[data] use``.
        overrides: ``"key=value"`` texts with dotted keys.

    Raises:
        ConfigError: There is no such source, a key is wrong, or one that has no default is missing.
    """
    from fedvision.config import ExperimentConfig
    from fedvision.data.sources.shorthand import data_table

    if file.stem.startswith(".") or not str(file).isprintable():
        raise ConfigError(f"{file!s:.60}".encode("unicode_escape").decode() + ": no name of an experiment")
    table: dict[str, Any] = {
        "name": file.stem,
        "seed": 0,
        "rounds": 10,
        "data": _fetching(data_table(source, lambda: {"size": _SIZE})),
        "partition": {"use": "iid", "clients": 10},
        "model": {"use": "cnn"},
        "loss": {"use": "cross-entropy"},
        "training": {"lr": 0.05, "epochs": 1, "batch_size": 32},
        "strategy": {"use": "fedavg"},
    }
    tables.apply(table, overrides)
    config = ExperimentConfig.from_dict(ExperimentConfig.placed(table, file.absolute().parent))
    registry.check("data", config.data)
    text = "\n".join([_HEAD.format(file=file), *_keys(ExperimentConfig, config, table)]) + "\n"
    assert ExperimentConfig.from_toml(text) == config
    return text


def _fetching(table: dict[str, Any]) -> dict[str, Any]:
    """Return ``[data]`` with the key that fetches the images, where its source has it."""
    fetches = "path" not in table and "download" in registry.parameters("data", table["use"])
    return table | ({"download": True} if fetches else {})


def _keys(cls: type[Any], config: Any, table: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """Yield the lines of a dataclass's own keys, then the tables in it.

    Args:
        cls: The dataclass.
        config: One of these, as ``table`` makes it.
        table: The keys that are set.
        name: Dotted name of the table; empty at the top.
    """
    from fedvision.shared_keys import field_texts
    from fedvision.types import PluginSpec

    texts, inside = field_texts(cls), []
    for field in dataclasses.fields(cls):
        value = getattr(config, field.name)
        if field.name == "args":
            continue
        if dataclasses.is_dataclass(value) and not (name and isinstance(value, PluginSpec)):
            inside.append((field.name, value, texts[field.name]))
        else:
            yield from _key(field.name, table.get(field.name), tables.plain(value), texts[field.name])
    if isinstance(config, PluginSpec):
        yield from _arguments(name, config, table)
    for key, value, text in inside:
        full = f"{name}.{key}" if name else key
        yield f"\n[{full}]"
        given = table.get(key, {})
        plugin = {"use": given} if isinstance(given, str) else given
        if type(value) is PluginSpec:
            yield from _key("use", value.use, value.use, text)
            yield from _arguments(key, value, plugin)
        else:
            yield from _keys(type(value), value, plugin, full)


def _arguments(kind: str, spec: Any, table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a plug-in's own keys, undocumented ones last."""
    from fedvision.cli.reference import plugin_arguments

    arguments = plugin_arguments(kind, spec.use)
    for argument in arguments:
        default = None if argument.required else argument.default
        yield from _key(argument.name, table.get(argument.name), default, argument.text)
    known = {"use", *(argument.name for argument in arguments)}
    own = {field.name for field in dataclasses.fields(spec)}
    for key, value in table.items():
        if key not in known | own:
            yield f"{key} = {toml(value)}"


def _key(key: str, given: Any, default: Any, text: str) -> Iterator[str]:
    """Yield a key's explanation and its line; none for a key that has neither a value nor a default."""
    if given is None and default is None:
        return
    yield ""
    yield from textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    yield f"{key} = {toml(given)}" if given is not None else f"#{key} = {toml(default)}"


def toml(value: Any) -> str:
    """Return a value as TOML on one line."""
    import tomli_w

    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_key(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def toml_key(key: str) -> str:
    """Return a key as TOML, in quotes where it needs them."""
    import tomli_w

    return tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
