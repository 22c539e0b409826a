"""Checks of model keys: each refuses a value with one sentence that names the key."""

from __future__ import annotations

from collections.abc import Iterable

from fedvision.errors import closest


def one_of(key: str, value: str, options: Iterable[str]) -> None:
    """Refuse a word that is none of the options.

    Raises:
        ValueError: The word is unknown.
    """
    options = list(options)
    if value not in options:
        listed = ", ".join(map(repr, options))
        raise ValueError(f"{key} must be one of {listed}, not {value!r}{closest(value, options)}")
