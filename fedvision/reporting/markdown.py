"""Markdown and YAML in which somebody else's words, such as names of classes, stay words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedvision.formatting import one_line

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS = frozenset("\\`*_{}[]()#!|~$@^=")
"""What begins a link, an image, code, emphasis, mathematics, a heading or a cell."""
_LONGEST = 200
"""Characters of a name."""


def escaped(text: str, longest: int = _LONGEST) -> str:
    """Return a text that Markdown shows as it is, in a sentence and in a table's cell.

    Marks get a backslash (CommonMark 2.4) or become entities, so that nothing becomes a link, an image, HTML,
    code or another cell; line breaks and control characters become spaces.

    Args:
        text: Somebody else's words.
        longest: Characters of them at most.
    """
    kept = "".join(
        _ENTITIES.get(letter, f"\\{letter}" if letter in _MARKS else letter)
        for letter in one_line(text, longest)
    )
    # Addresses are links without any mark; at its beginning, a line may become a list or a rule.
    kept = re.sub(r"(?i)\bwww\.", lambda found: f"{found[0][:-1]}\\.", kept.replace("://", "\\://"))
    return re.sub(
        r"^(\s*)([-+]|\d+\.(?=\s|$))", lambda found: f"{found[1]}{found[2][:-1]}\\{found[2][-1]}", kept
    )


def code(text: str) -> str:
    """Return a text that may stand between backticks: a backtick or line break in it becomes a space."""
    return "".join(letter if letter.isprintable() and letter != "`" else " " for letter in text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers; cells are Markdown."""
    line = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, line, *rows])


def yaml(value: Any, indent: int = 0) -> str:
    """Return mappings, sequences, texts and numbers as YAML 1.2, without trailing line break.

    Args:
        value: None of the mappings and sequences empty; keys are plain words.
        indent: Spaces before each line.
    """
    space = " " * indent
    if isinstance(value, Mapping):
        return "\n".join(f"{space}{key}:{_nested(item, indent + 2)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        items = (yaml(item, indent + 2) for item in value)
        return "\n".join(f"{space}- {item[indent + 2 :]}" for item in items)
    return space + _scalar(value)


def _nested(value: Any, indent: int) -> str:
    if isinstance(value, Mapping | list | tuple):
        return f"\n{yaml(value, indent)}"
    return f" {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = repr(value)
        # A YAML 1.1 reader takes 1e-05 for a text.
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(map(_quoted, str(value))) + '"'


def _quoted(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    number = ord(letter)
    return (
        f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
    )
