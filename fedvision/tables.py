"""Nested tables, as TOML gives them, <-> frozen dataclasses; every error names the dotted key.

A table whose dataclass is a ``PluginSpec`` keeps the keys that the dataclass has; every other key in it is a
keyword argument of the plug-in.
"""

from __future__ import annotations

import codecs
import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import tomli_w

from fedvision.errors import ConfigError, nearest
from fedvision.types import PluginSpec

T = TypeVar("T")


def require(holds: bool, key: str, problem: str) -> None:
    """Refuse a setting that does not hold.

    Raises:
        ConfigError: It is named with its key, and what is wrong with it.
    """
    if not holds:
        raise ConfigError(f"{key} {problem}")


def at_least(low: float, settings: object, table: str, *names: str) -> None:
    """Refuse settings that are below a bound, infinite or no number.

    Args:
        low: The smallest value.
        settings: Has them as attributes.
        table: In which table of the file they stand, with its dot; ``""`` at the top.
        names: Theirs.

    Raises:
        ConfigError: One of them is; it is named with its key.
    """
    for name in names:
        value = getattr(settings, name)
        require(low <= value < math.inf, f"{table}{name}", f"must be >= {low:g}, not {value}")


def within(low: float, high: float, settings: object, table: str, *names: str) -> None:
    """Refuse settings that are out of bounds or no number; arguments as for ``at_least``."""
    for name in names:
        value = getattr(settings, name)
        require(low <= value <= high, f"{table}{name}", f"must be from {low:g} to {high:g}, not {value}")


def read(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        what: What the file should be, for the error.

    Raises:
        ConfigError: It is missing, unreadable or no TOML.
    """
    try:
        raw = path.read_bytes()
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError(f"{path}: this text is in UTF-16; save it as UTF-8")
        # Some editors begin a file with a byte-order mark, which TOML does not know.
        return tomllib.loads(raw.removeprefix(codecs.BOM_UTF8).decode().replace("\r\n", "\n"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file; name {what}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: this is no TOML: {error}; correct that line") from error
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read: {error.strerror}") from error


def override(table: dict[str, Any], text: str) -> str:
    """Set one key from a ``"dotted.key=value"`` text and return the key; the value is TOML or a bare text.

    Raises:
        ConfigError: The text is no such pair, or a parent of the key is no table.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r}: write it as key=value, such as training.lr=0.1")
    key = key.strip()
    assign(table, key, _value(value.strip()))
    return key


def apply(table: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set keys from ``"dotted.key=value"`` texts, in their order, and return the keys.

    Raises:
        ConfigError: As for ``override``, or a text would silently undo one before it.
    """
    keys: list[str] = []
    for text in overrides:
        key = override(table, text)
        if lost := [earlier for earlier in keys if earlier.startswith(f"{key}.")]:
            raise ConfigError(f"--set {text}: it replaces {lost[0]}, which was set before it; give it first")
        keys.append(key)
    return keys


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def assign(table: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a key of nested tables by its dotted name; a plug-in's name alone becomes a table with ``use``.

    Raises:
        ConfigError: A parent is neither a table nor a name.
    """
    *parents, last = dotted.split(".")
    for parent in parents:
        below = table.setdefault(parent, {})
        if isinstance(below, str):
            below = table[parent] = {"use": below}
        if not isinstance(below, dict):
            raise ConfigError(f"{dotted}: {parent} is no table")
        table = below
    table[last] = value


def check_values(value: Any, where: str = "") -> None:
    """Refuse values that no key has a use for, whichever plug-in reads it.

    Args:
        value: Nested tables and lists.
        where: Its dotted key.

    Raises:
        ConfigError: A number is infinite or none; a text has a byte in it that is no letter, as the command
            line passes them on, or a zero, which no file's name can hold.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_values(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            check_values(item, where)
    elif isinstance(value, float):
        require(math.isfinite(value), where, f"must be a finite number, not {value}")
    elif isinstance(value, str):
        require(
            not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value),
            where,
            f"must be a text in UTF-8 without zeros, not {value!r}; rename the file that it names, or make a "
            "link to it",
        )


def holds(table: Any, dotted: str) -> bool:
    """Return whether nested tables have a key, by its dotted name."""
    for name in dotted.split("."):
        if not isinstance(table, Mapping) or name not in table:
            return False
        table = table[name]
    return True


def build(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass from a table; keys it does not have go to ``args`` where it names a plug-in.

    Args:
        cls: The dataclass.
        table: Its values, nested.
        where: Dotted name of the table, for errors; empty at the top.

    Raises:
        ConfigError: A key is unknown, missing, of another type or out of range.
    """
    if isinstance(table, str) and issubclass(cls, PluginSpec):
        table = {"use": table}
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table, not {table!r}")
    hints = typing.get_type_hints(cls)
    own = [f.name for f in dataclasses.fields(cls) if f.name != "args"]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in table.items():
        dotted = f"{where}.{key}" if where else key
        if key in own:
            values[key] = _convert(hints[key], _named(cls, key, value), dotted)
        elif issubclass(cls, PluginSpec):
            extra[key] = value
        else:
            raise ConfigError(f"{dotted}: there is no such key{nearest(key, own)}")
    if issubclass(cls, PluginSpec):
        values["args"] = extra
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if (
            f.name not in values
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ):
            raise ConfigError(f"{f'{where}.' if where else ''}{f.name} is missing; add it")
    return cls(**values)


def _named(cls: type[Any], key: str, value: Any) -> Any:
    """Return a table of a plug-in with the default's name where it has none."""
    field = next(f for f in dataclasses.fields(cls) if f.name == key)
    if not isinstance(value, Mapping) or "use" in value or field.default_factory is dataclasses.MISSING:
        return value
    default = field.default_factory()
    return {"use": default.use, **value} if isinstance(default, PluginSpec) else value


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return the value as the field's type; raise ConfigError where it has another."""
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, where)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, options))}, not {value!r}")
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, not {value!r}")
        return {key: _convert(options[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(options[0], item, where) for item in items)
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be {_type_text(hint)}, not {value!r}")
    return value


def _type_text(hint: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]


def plain(value: Any) -> Any:
    """Return dataclasses as tables with plug-in arguments folded in and None left out."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(value[key]) for key in sorted(value)}
    if not dataclasses.is_dataclass(value):
        return value
    table: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        item = getattr(value, f.name)
        if f.name != "args" and item is not None:
            table[f.name] = plain(item)
    return table | plain(getattr(value, "args", {}))


class Settings:
    """A frozen dataclass that stands in a TOML file of its own."""

    WHAT: ClassVar[str]
    """What the file is, for the error when there is none."""

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a TOML file.

        Args:
            path: The file.
            overrides: ``"key=value"`` pairs with dotted keys, such as ``"training.lr=0.1"``.

        Raises:
            ConfigError: The file is missing or no TOML, or a key is unknown, of another type or out of range.
        """
        path = Path(path)
        table = read(path, cls.WHAT)
        try:
            apply(table, overrides)
            return cls.from_dict(cls.placed(table, path.absolute().parent))
        except ConfigError as error:
            raise type(error)(f"{path}: {error}") from error

    @classmethod
    def placed(cls, table: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a table of a file in this folder as ``from_dict`` takes it.

        Raises:
            ConfigError: It is no table of this kind.
        """
        return table

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """Build the settings from nested tables, as TOML gives them."""
        check_values(table)
        return build(cls, table)

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Build the settings from TOML text, such as ``to_toml`` wrote."""
        return cls.from_dict(tomllib.loads(text))

    def to_dict(self) -> dict[str, Any]:
        """Return nested tables, as ``from_dict`` takes them."""
        table: dict[str, Any] = plain(self)
        return table

    def to_toml(self) -> str:
        """Return the canonical TOML: every key in a fixed order, so equal settings are equal strings."""
        return tomli_w.dumps(self.to_dict())
