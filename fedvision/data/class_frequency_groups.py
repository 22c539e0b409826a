"""Frequent, middling and rare classes, by their training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def tail_groups(counts: Sequence[int] | NDArray[Any]) -> dict[str, tuple[int, ...]]:
    """Return the class numbers of the frequent, the middling and the rare classes.

    Classes are ordered by falling training count. The first 30 % are the head and the last 30 % the tail,
    rounded down but at least one class each; ten different counts give 3, 4 and 3. Classes with equal counts
    stay together, in the group in which the middle of their places lies: nothing but their number would tell
    them apart. So there may be no head, medium or tail.

    Args:
        counts: Training images per class [C].

    Returns:
        ``head``, ``medium`` and ``tail``, each by falling count; nothing where all counts are equal: no class
        is rarer than another.

    Raises:
        ValueError: There is no class.
    """
    values = np.asarray(counts, dtype=np.float64)
    if not len(values):
        raise ValueError("counts must hold at least one class")
    if values.min() == values.max():
        return {}
    size, groups = max(1, 3 * len(values) // 10), dict[str, list[int]](head=[], medium=[], tail=[])
    ordered = np.sort(values)
    least, most = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    for c in np.argsort(-values, kind="stable"):
        more, fewer = len(values) - int(most[c]), int(least[c])
        # Twice the middle of its places from either end, the first place being 0.
        from_top, from_bottom = len(values) - 1 + more - fewer, len(values) - 1 + fewer - more
        name = "head" if from_top < 2 * size else "tail" if from_bottom < 2 * size else "medium"
        groups[name].append(int(c))
    return {name: tuple(classes) for name, classes in groups.items()}
