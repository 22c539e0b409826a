"""Before training: who has which images, how unequal the clients are, and what a round will send."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision.data.partition.skew_metrics import Skew, measure
from fedvision.formatting import number, percent, plural, sample, size
from fedvision.reporting.class_facts import by_frequency
from fedvision.reporting.text_table import TextTable, plain_text

CLIENTS_SHOWN, CLASSES_SHOWN = 20, 12
_MEASURES = {
    "sizes": ("images", 0),
    "classes": ("{kinds}", 0),
    "effective_classes": ("effective {kinds}", 1),
    "imbalance": ("most frequent / rarest {kind}", 1),
    "jensen_shannon": ("divergence from the whole, bits", 3),
    "total_variation": ("distance from the whole", 3),
}
"""Measures of ``skew.Skew`` with their names and decimals."""
_KINDS = {"classes": "class", "labels": "label"}
"""What an image is of, and the singular."""


class Whole(NamedTuple):
    """The federation whose clients, all of them or a sample, a report shows."""

    clients: int
    """K."""
    totals: NDArray[np.int64]
    """int64 [C]: training images of each class over all clients."""
    exact: bool
    """Whether they were counted; else they are expected numbers."""
    shown: NDArray[np.int64]
    """Which clients are shown."""
    distinct: NDArray[np.int64] | None = None
    """int64 [C]: the same with every image counted once, where clients share images."""
    names: Sequence[str] = ()
    """The clients' names [K] where they have some."""
    counted: str = "images"
    """What ``totals`` count, in the plural: ``"labels"`` where an image may have several, or ``"pixels"``."""
    sizes: NDArray[np.int64] | None = None
    """int64 [K]: training images of each client shown, where something else is counted."""
    images: int | None = None
    """Training images over all clients, likewise."""

    @property
    def sampled(self) -> bool:
        """Whether some clients are not shown."""
        return len(self.shown) < self.clients

    @property
    def kinds(self) -> str:
        """What an image is of, in the plural."""
        return "labels" if self.counted == "labels" else "classes"

    @property
    def kind(self) -> str:
        """The same in the singular."""
        return _KINDS[self.kinds]


def skew_report(
    counts: NDArray[np.int64],
    classes: Sequence[str],
    *,
    whole: Whole | None = None,
    weights: Mapping[str, Sequence[float]] | None = None,
    state_bytes: int | None = None,
    network_bytes: int = 0,
    cohort: int | None = None,
    left_out: int = 0,
    held_out: int = 0,
) -> str:
    """Return a split in text.

    Args:
        counts: int64 [K, C]: training images of each class on each client, or on each one of a sample.
        classes: Names [C].
        whole: The federation; by default ``counts`` are all its clients.
        weights: What the loss makes of the class counts, [C] by name, such as ``{"weight": ...}``.
        state_bytes: Bytes of the tensors that travel to one client, and as many back.
        network_bytes: Bytes of all tensors of the network, where more than travel.
        cohort: Clients a round.
        left_out: Images that no client has.
        held_out: Images that are kept from training to measure on.
    """
    whole = whole or Whole(len(counts), counts.sum(0), True, np.arange(len(counts)))
    skew = measure(counts, whole.totals, whole.sizes)
    parts: list[str | TextTable] = [
        _size(whole, left_out, held_out),
        "",
        _clients(counts, classes, skew, whole),
        *_more(whole),
    ]
    parts += ["", _spread(skew, whole), "", _classes(counts, classes, weights or {}, whole)]
    if state_bytes is not None:
        parts += ["", _traffic(state_bytes, network_bytes, cohort or whole.clients)]
    return plain_text(*parts)


def _size(whole: Whole, left_out: int, held_out: int) -> str:
    images = int(whole.totals.sum()) if whole.images is None else whole.images
    kinds = plural(len(whole.totals), whole.kind, whole.kinds.removeprefix(whole.kind))
    text = (
        f"{'' if whole.exact else 'about '}{plural(images, 'training image')} of {kinds} on "
        f"{plural(whole.clients, 'client')}"
    )
    if whole.images is not None:
        text += f", with {int(whole.totals.sum()):,} {whole.counted} in all"
    text += "" if whole.exact else " (expected, not counted)"
    text += f"; {plural(held_out, 'image')} kept to measure on" if held_out else ""
    return text + (f"; {plural(left_out, 'image')} left out" if left_out else "")


def _clients(counts: NDArray[np.int64], classes: Sequence[str], skew: Skew, whole: Whole) -> TextTable:
    """Return clients x classes; of many classes only how many and how even each client has."""
    wide = counts.shape[1] <= CLASSES_SHOWN
    order = by_frequency(whole.totals)[: None if wide else 0]
    names = (classes[c] for c in order)
    table = TextTable("client", "images", f"effective {whole.kinds}", "divergence", *names, keys=2)
    for row, client in enumerate(whole.shown[:CLIENTS_SHOWN]):
        cells = [f"{counts[row, c]:,}" if counts[row, c] else "·" for c in order]
        facts = (number(skew.effective_classes[row], 1), number(skew.jensen_shannon[row]))
        table.add(whole.names[client] if whole.names else str(client), f"{skew.sizes[row]:,}", *facts, *cells)
    return table


def _more(whole: Whole) -> list[str]:
    hidden = whole.clients - CLIENTS_SHOWN
    drawn = "; those shown are drawn at random" if whole.sampled else ""
    return [f"and {plural(hidden, 'client')} more{drawn}"] if hidden > 0 else []


def _spread(skew: Skew, whole: Whole) -> TextTable:
    over = sample(len(whole.shown), whole.clients) if whole.sampled else "clients"
    table = TextTable(f"over {over}", "median", "lowest", "highest")
    for key, (name, digits) in _MEASURES.items():
        spread = skew.summary[key]
        table.add(
            name.format(kinds=whole.kinds, kind=whole.kind), *(f"{value:,.{digits}f}" for value in spread)
        )
    table.add("Gini coefficient of the sizes", number(skew.gini), "", "")
    table.add(f"whole: most frequent / rarest {whole.kind}", number(skew.global_imbalance, 1), "", "")
    return table


def _classes(
    counts: NDArray[np.int64], classes: Sequence[str], weights: Mapping[str, Sequence[float]], whole: Whole
) -> TextTable:
    """Return the classes, the most frequent first; of many the ends of the list, where the skew is."""
    total, order = whole.totals, by_frequency(whole.totals)
    having_it = f"of {len(counts)} clients have it" if whole.sampled else "clients that have it"
    # Shares of labels are of the images, which may have several: they add up to more than one.
    labels = whole.counted == "labels"
    base = max((labels and whole.images) or int(total.sum()), 1)
    table = TextTable(whole.kind, "images" if labels else whole.counted, "share", having_it, *weights)
    half = CLASSES_SHOWN // 2
    for place, c in enumerate(order):
        if len(order) > CLASSES_SHOWN and half <= place < len(order) - half:
            if place == half:
                table.add("...", "", "", "", *("" for _ in weights))
            continue
        having = int(np.count_nonzero(counts[:, c]))
        facts = (f"{total[c]:,}", percent(total[c] / base), f"{having:,}")
        table.add(classes[c], *facts, *(number(_known(values[c])) for values in weights.values()))
    return table


def _known(value: float) -> float | None:
    """Return a figure, or None for NaN: no client has the class."""
    return None if math.isnan(value) else value


def _traffic(state_bytes: int, network_bytes: int, cohort: int) -> str:
    part = f", of the network's {size(network_bytes)}" if network_bytes > state_bytes else ""
    return (
        f"a round sends {size(state_bytes * cohort)} to {plural(cohort, 'client')} and as much back: "
        f"{size(state_bytes)} each way for one{part}"
    )
