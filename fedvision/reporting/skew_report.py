"""Before training: who has which images, how unequal the clients are, and what a round will send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedvision.data.skew import Skew, measure
from fedvision.reporting.facts import by_frequency
from fedvision.reporting.sheets import Sheet, plain_text
from fedvision.reporting.wording import number, percent, plural, size, whole

CLIENTS_SHOWN, CLASSES_SHOWN = 20, 12
_MEASURES = {
    "sizes": ("images", 0),
    "classes": ("classes", 0),
    "effective_classes": ("effective classes", 1),
    "imbalance": ("most frequent / rarest class", 1),
    "jensen_shannon": ("divergence from the whole, bits", 3),
    "total_variation": ("distance from the whole", 3),
}


def skew_report(
    counts: NDArray[np.int64],
    classes: Sequence[str],
    *,
    weights: Mapping[str, Sequence[float]] | None = None,
    state_bytes: int | None = None,
    cohort: int | None = None,
    left_out: int = 0,
) -> str:
    """Return a split in text.

    Args:
        counts: int64 [K, C]: training images of each class on each client.
        classes: Names [C].
        weights: What the loss makes of the class counts, [C] by name, such as ``{"weight": ...}``.
        state_bytes: Bytes of the tensors that travel to one client, and as many back.
        cohort: Clients a round.
        left_out: Images that no client has.
    """
    skew = measure(counts)
    parts: list[str | Sheet] = [
        _size(counts, left_out),
        "",
        _clients(counts, classes, skew),
        *_more(counts),
    ]
    parts += ["", _spread(skew), "", _classes(counts, classes, weights or {})]
    if state_bytes is not None:
        parts += ["", _traffic(state_bytes, cohort or len(counts))]
    return plain_text(*parts)


def _size(counts: NDArray[np.int64], left_out: int) -> str:
    clients, classes = counts.shape
    told = (
        f"{plural(int(counts.sum()), 'training image')} of {plural(classes, 'class', 'es')} on "
        f"{plural(clients, 'client')}"
    )
    return told + (f"; {plural(left_out, 'image')} left out" if left_out else "")


def _clients(counts: NDArray[np.int64], classes: Sequence[str], skew: Skew) -> Sheet:
    """Return clients x classes; of many classes only how many and how even each client has."""
    wide = counts.shape[1] <= CLASSES_SHOWN
    order = by_frequency(counts.sum(0))[: None if wide else 0]
    names = (classes[c] for c in order)
    table = Sheet("client", "images", "effective classes", "divergence", *names, keys=2)
    for client in range(min(len(counts), CLIENTS_SHOWN)):
        cells = [whole(int(counts[client, c])) if counts[client, c] else "·" for c in order]
        facts = (number(skew.effective_classes[client], 1), number(skew.jensen_shannon[client]))
        table.add(str(client), whole(int(skew.sizes[client])), *facts, *cells)
    return table


def _more(counts: NDArray[np.int64]) -> list[str]:
    hidden = len(counts) - CLIENTS_SHOWN
    return [f"and {plural(hidden, 'client')} more"] if hidden > 0 else []


def _spread(skew: Skew) -> Sheet:
    table = Sheet("over clients", "median", "lowest", "highest")
    for key, (name, digits) in _MEASURES.items():
        spread = skew.summary[key]
        table.add(name, *(f"{value:,.{digits}f}" for value in spread))
    table.add("Gini coefficient of the sizes", number(skew.gini), "", "")
    table.add("whole: most frequent / rarest class", number(skew.global_imbalance, 1), "", "")
    return table


def _classes(
    counts: NDArray[np.int64], classes: Sequence[str], weights: Mapping[str, Sequence[float]]
) -> Sheet:
    """Return the classes, the most frequent first; of many the ends of the list, where the skew is."""
    total, order = counts.sum(0), by_frequency(counts.sum(0))
    table = Sheet("class", "images", "share", "clients that have it", *weights)
    half = CLASSES_SHOWN // 2
    for place, c in enumerate(order):
        if len(order) > CLASSES_SHOWN and half <= place < len(order) - half:
            if place == half:
                table.add("...", "", "", "", *("" for _ in weights))
            continue
        having = int(np.count_nonzero(counts[:, c]))
        facts = (whole(int(total[c])), percent(total[c] / max(total.sum(), 1)), whole(having))
        table.add(classes[c], *facts, *(number(values[c]) for values in weights.values()))
    return table


def _traffic(state_bytes: int, cohort: int) -> str:
    return (
        f"a round sends {size(state_bytes * cohort)} to {plural(cohort, 'client')} and as much back: "
        f"{size(state_bytes)} each way for one"
    )
