"""What people call the parts of a data set: ``train``, ``Training``, ``test_set``, ``valid``, ``dev``."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "test": ("test", "testing", "tst"),
    "val": ("val", "valid", "validation", "dev", "development", "eval", "evaluation"),
}
_NAMES = {word: part for part, words in _WORDS.items() for word in words}
_PLAIN = re.compile(r"(?P<word>[a-z]+)[ _-]?(set|data|dataset|images|imgs|split|folder)?")


def part_of(name: str) -> str | None:
    """Return ``"train"``, ``"test"`` or ``"val"`` where a name is that of a part, in any case, else None."""
    found = _PLAIN.fullmatch(name.strip().lower())
    return _NAMES.get(found["word"]) if found else None


def hinted_part(name: str) -> str | None:
    """Return the part that a name hints at by one of its words (``test1``, ``seg_train``), else None."""
    words = re.findall(r"[a-z]+", name.lower())
    hints = [_NAMES[word] for word in words if word in _NAMES]
    return part_of(name) or (hints[0] if hints else None)


def are_parts(names: Iterable[str]) -> bool:
    """Return whether folders are rather parts than classes or clients.

    So they are where training and test images have names of parts among them, where all have such names, or
    where all hint at one, some at training and some at another.
    """
    names = list(names)
    plain = [part_of(name) for name in names]
    if "train" in plain and {"test", "val"} & set(plain):
        return True
    hints = {hinted_part(name) for name in names}
    return bool(names) and None not in hints and (len(hints) > 1 or None not in plain)
