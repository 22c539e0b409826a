"""Names of classes and clients, as people and programs write them: missing ones, equal ones, their order."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise

from fedvision.errors import DataError
from fedvision.streams import escaped

_MISSING = frozenset(
    "#N/A|#NA|#N/A N/A|-NaN|-nan|<NA>|N/A|NA|NAN|NULL|NaN|NaT|Nan|None|n/a|nan|null|?|1.#QNAN|-1.#IND".split(
        "|"
    )
)
"""What programs write for a value that is not there; pandas reads most of them so."""

_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""Control characters, those that nobody sees or that turn the text around, and bytes that are no text."""


def is_missing(text: str) -> bool:
    """Return whether a cell or name stands for a missing value."""
    return not text.strip() or text.strip() in _MISSING


def composed(text: str) -> str:
    """Return a name in Unicode's composed form (NFC): macOS writes file names decomposed, others do not."""
    return unicodedata.normalize("NFC", text)


def visible(text: str) -> str:
    """Return a name with characters that no page or terminal can show as Python writes them in ASCII."""
    return _UNSEEN.sub(lambda found: escaped(found[0]), text)


def in_order(names: Iterable[str]) -> list[str]:
    """Return different names sorted: by value where all are numbers, else as text."""
    found = sorted(set(names))
    values = [_number(name) for name in found]
    if any(value is None for value in values):
        return found
    return [name for _, name in sorted(zip(values, found, strict=True))]


def class_names(names: Iterable[str], where: str) -> list[str]:
    """Return class names as ``in_order``.

    Raises:
        DataError: One stands for a missing value, or two are one number written in two ways.
    """
    found = in_order(names)
    for name in found:
        if is_missing(name):
            raise DataError(
                f"{where}: class {name!r} stands for a missing value; remove its images, or name all classes "
                "in data.classes if it is one"
            )
    for one, other in pairwise(found):
        if _number(one) is not None and _number(one) == _number(other):
            raise DataError(f"{where}: classes {one!r} and {other!r} are one number; write it in one way")
    return found


def alike(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return pairs of names that differ only in case, blanks or characters that nobody sees."""
    first: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        earlier = first.setdefault(_skeleton(name), name)
        if earlier != name:
            pairs.append((earlier, name))
    return tuple(pairs)


def alike_notice(kind: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return a sentence on names that look like one, if there are any.

    Args:
        kind: What they name, in the plural: ``"classes"``.
        names: All of them.
    """
    pairs = alike(names)
    if not pairs:
        return ()
    shown = ", ".join(f"{one!r} and {other!r}" for one, other in pairs[:3])
    more = f" and {len(pairs) - 3:,} more pairs" if len(pairs) > 3 else ""
    return (f"{kind} {shown}{more} differ only in case or blanks; rename one where they mean the same",)


def _number(name: str) -> float | None:
    try:
        value = float(name)
    except ValueError:
        return None
    # float() reads "1_0" too, which nobody means as ten.
    return value if math.isfinite(value) and "_" not in name else None


def _skeleton(name: str) -> str:
    seen = unicodedata.normalize("NFKC", name).casefold()
    visible = (letter for letter in seen if unicodedata.category(letter) not in ("Zs", "Cf", "Cc"))
    return unicodedata.normalize("NFC", "".join(visible))
