"""Checks of model keys: each refuses a value with one sentence that names the key."""

from __future__ import annotations

from collections.abc import Iterable

from fedvision.errors import nearest


def positive(**values: int) -> None:
    """Refuse whole numbers below 1.

    Raises:
        ValueError: A value is < 1.
    """
    for key, value in values.items():
        if value < 1:
            raise ValueError(f"{key} must be >= 1, not {value}")


def probability(**values: float) -> None:
    """Refuse numbers outside 0 <= p < 1, such as a dropout that would drop everything.

    Raises:
        ValueError: A value is out of range.
    """
    for key, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{key} must be >= 0 and < 1, not {value}")


def one_of(key: str, value: str, options: Iterable[str]) -> None:
    """Refuse a word that is none of the options.

    Raises:
        ValueError: The word is unknown.
    """
    options = list(options)
    if value not in options:
        listed = ", ".join(map(repr, options))
        raise ValueError(f"{key} must be one of {listed}, not {value!r}{_hint(value, options)}")


def _hint(value: str, options: list[str]) -> str:
    """Return ``nearest``'s guess, without its list of known words: the sentence has them already."""
    guess = nearest(value, options)
    return guess if guess.startswith("; did you mean") else ""
