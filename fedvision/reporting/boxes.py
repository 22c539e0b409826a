"""Detection in tables and in the report: average precision of each class, and precision-recall curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from fedvision.formatting import GROUPS, SCORES, percent, whole
from fedvision.reporting.class_facts import by_frequency, frequency_groups
from fedvision.reporting.plots import COLOURS, HEIGHT, WIDTH
from fedvision.reporting.run_data import RunData
from fedvision.reporting.svg import BLUE, draw
from fedvision.reporting.text_table import TextTable
from fedvision.tasks.class_predictions import ClassScores

MEASURES = ("ap", "ap50", "ap75", "ar100")
RAREST = 5


@dataclass(frozen=True, kw_only=True)
class BoxRow:
    """One class."""

    name: str
    train: int
    """Boxes of it in training, over all clients."""
    test: int
    """Boxes of it in the measurement."""
    measures: tuple[float | None, ...]
    """Those of ``MEASURES``, shares of 1; None without a box."""
    group: str
    """``"head"``, ``"medium"`` or ``"tail"``; empty where no class is rarer than another."""


@dataclass(frozen=True, kw_only=True)
class BoxSection:
    """What a page shows of a measurement of boxes."""

    heads: tuple[str, ...]
    rows: list[BoxRow]
    """The class with most boxes in training first."""
    curves: Markup
    """Precision over recall at IoU 0.5, as an SVG element; empty where nothing was found."""


def box_section(facts: RunData) -> BoxSection | None:
    """Return what a run's last measurement tells of boxes; None of a run of another task."""
    columns = _last(facts)
    if not columns:
        return None
    groups = frequency_groups(facts.distinct)
    order = by_frequency(facts.distinct)
    rows = [
        BoxRow(
            name=facts.classes[c],
            train=int(facts.totals[c]),
            test=int(columns["boxes"][c]),
            measures=tuple(columns[name][c] for name in MEASURES),
            group=groups[c],
        )
        for c in order
    ]
    heads = tuple(SCORES[name] for name in MEASURES)
    return BoxSection(heads=heads, rows=rows, curves=_curves(columns, groups))


def rarest_table(facts: RunData) -> list[str | TextTable]:
    """Return the classes with fewest training boxes and what is found of them; nothing of another task."""
    section = box_section(facts)
    if section is None:
        return []
    table = TextTable("rarest classes", "training boxes", "boxes", *section.heads)
    for row in section.rows[: -RAREST - 1 : -1]:
        table.add(row.name, whole(row.train), whole(row.test), *map(percent, row.measures))
    return ["", table]


def score_rows(found: ClassScores) -> TextTable:
    """Return a row for each class of what a detector scores, the class with most training boxes first."""
    counts = np.array(found.class_counts or [0] * len(found.classes), np.int64)
    table = TextTable("class", "training boxes", "boxes", *(SCORES[name] for name in MEASURES))
    for c in by_frequency(counts):
        values = [float(found.by_class[name][c]) for name in MEASURES]
        cells = [percent(None if np.isnan(value) else value) for value in values]
        train = whole(int(counts[c])) if found.class_counts else "–"
        table.add(found.classes[c], train, whole(int(found.by_class["boxes"][c])), *cells)
    return table


def _last(facts: RunData) -> Mapping[str, Sequence[Any]]:
    """Return the columns [C] of the best view's last record; empty where there are none."""
    best = facts.best_view
    for record in reversed(facts.rounds):
        if best and (found := record.get(best.view)):
            columns: Mapping[str, Sequence[Any]] = found.get("boxes") or {}
            return columns if len(columns.get("boxes", ())) == len(facts.classes) else {}
    return {}


def _curves(columns: Mapping[str, Sequence[Any]], groups: Sequence[str]) -> Markup:
    """Draw the mean precision over the classes of each group that have boxes."""
    points = np.array(columns["precision"], np.float64)  # [C, 21]; None is NaN
    lines = {}
    for name in GROUPS if any(groups) else ("",):
        own = [c for c, group in enumerate(groups) if group == name and not np.isnan(points[c]).any()]
        if own:
            lines[name] = points[own].mean(axis=0)
    if not lines:
        return Markup()
    recalls = np.linspace(0, 1, points.shape[1])

    def paint(axes: Axes) -> None:
        for name, line in lines.items():
            colour = COLOURS.get(name, BLUE)
            axes.plot(
                recalls, line, color=colour, linewidth=2, label=f"{name} classes" if name else "classes"
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.legend(frameon=False, loc="best")

    means = "; ".join(f"{name or 'all'} {percent(float(line.mean()))}" for name, line in lines.items())
    alt = f"precision over recall at an IoU of 0.5; mean precision of classes: {means}"
    return Markup(draw(paint, name="precision-recall", alt=alt, width=WIDTH, height=HEIGHT))
