"""The report's curves and comparisons: lines over rounds, named at their ends, and dots with their spread."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedvision.formatting import percent
from fedvision.reporting.series import Band, Series
from fedvision.reporting.svg import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, draw
from fedvision.tasks.calibration import Reliability
from fedvision.tasks.intervals import wilson

WIDTH, HEIGHT = 420, 230
"""Pixels of a curve's picture: two stand side by side on a wide page, one fills a phone's."""
COLOURS: Mapping[str, str] = {
    "server": BLUE,
    "clients": ORANGE,
    "personal": PURPLE,
    "training": MUTED,
    "head": BLUE,
    "medium": GREEN,
    "tail": ORANGE,
}
"""A line's colour by its name, the same in every picture."""
SERIES = (BLUE, ORANGE, GREEN, PURPLE, INK, MUTED)
"""Colours of lines that are compared."""


def curves(
    lines: Mapping[str, Series],
    *,
    name: str,
    what: str,
    share: bool = True,
    span: tuple[int, int] | None = None,
) -> str:
    """Draw figures over rounds.

    Args:
        lines: The figures by their names; empty ones are left out.
        name: Prefix of the picture's ids.
        what: What is drawn, such as ``"accuracy"``, for the alternative text.
        share: Values are shares of 1, shown as percent from 0 to 100.
        span: First and last round of the axis; that of the lines where it is left out.
    """
    drawn = {label: line for label, line in lines.items() if line.values}

    def paint(axes: Axes) -> None:
        for label, line in drawn.items():
            _line(axes, line.rounds, line.values, COLOURS.get(label, PURPLE))
        _over_rounds(axes, share, span)
        ends = {label: (line.rounds[-1], line.values[-1]) for label, line in drawn.items()}
        _name_ends(axes, ends, {label: COLOURS.get(label, PURPLE) for label in drawn})

    ends = [
        f"{label} {_value_text(line.values[0], share)} in round {line.rounds[0]}, "
        f"{_value_text(line.values[-1], share)} in round {line.rounds[-1]}"
        for label, line in drawn.items()
    ]
    alt = f"{what} over rounds: {'; '.join(ends)}"
    return draw(paint, name=name, alt=alt, width=WIDTH, height=HEIGHT)


def client_band(band: Band, *, name: str, span: tuple[int, int] | None = None) -> str:
    """Draw the accuracy of the worst, the median and the best client over rounds; arguments as for curves."""

    def paint(axes: Axes) -> None:
        axes.fill_between(band.rounds, band.lowest, band.highest, color=ORANGE, alpha=0.13, linewidth=0)
        for values, width in ((band.lowest, 1.0), (band.median, 2.0), (band.highest, 1.0)):
            _line(axes, band.rounds, values, ORANGE, width)
        _over_rounds(axes, share=True, span=span)
        last = band.rounds[-1]
        ends = {"best": band.highest[-1], "median": band.median[-1], "worst": band.lowest[-1]}
        _name_ends(axes, {k: (last, v) for k, v in ends.items()}, dict.fromkeys(ends, ORANGE))

    alt = (
        f"accuracy of single clients over rounds: in round {band.rounds[-1]} the worst has "
        f"{percent(band.lowest[-1])}, the median {percent(band.median[-1])}, the best "
        f"{percent(band.highest[-1])}"
    )
    return draw(paint, name=name, alt=alt, width=WIDTH, height=HEIGHT)


def reliability(found: Reliability, *, name: str) -> str:
    """Draw how often a model is right by how sure it is, and how many images are that sure.

    Args:
        found: Counts by confidence.
        name: Prefix of the picture's ids.
    """
    there = found.images > 0
    images = found.images[there]
    confidence, right = found.confidence[there] / images, found.right[there] / images
    low, high = wilson(found.right[there], images)

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        width = 1 / len(found.images)
        middles = (np.flatnonzero(there) + 0.5) * width
        axes.bar(middles, images / images.max() * 0.18, width * 0.86, color=MUTED, alpha=0.3, linewidth=0)
        axes.vlines(confidence, low, high, color=BLUE, linewidth=1.4)
        axes.plot(confidence, right, "o", color=BLUE, markersize=5, mew=0, clip_on=False)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))
        axes.set_xlabel("confidence", color=MUTED)
        axes.set_ylabel("named rightly", color=MUTED)

    rows = [
        f"{percent(float(sure), 0)} sure and {percent(float(share), 0)} right ({count} images)"
        for sure, share, count in zip(confidence, right, images.tolist(), strict=True)
    ]
    return draw(paint, name=name, alt=f"confidence and accuracy: {'; '.join(rows)}", width=WIDTH, height=330)


def dots(rows: Sequence[tuple[str, Sequence[float]]], *, name: str, what: str) -> str:
    """Draw one row for each group of runs: every run a dot, the mean a bar, its deviation a line.

    Args:
        rows: Label and values (shares of 1) of each group.
        name: Prefix of the picture's ids.
        what: Which score it is, for the alternative text.
    """

    def paint(axes: Axes) -> None:
        for place, (_, values) in enumerate(rows):
            mean = float(np.mean(values))
            if len(values) > 1:
                spread = float(np.std(values, ddof=1))
                axes.plot([mean - spread, mean + spread], [place, place], color=BLUE, linewidth=5, alpha=0.25)
            axes.plot(values, [place] * len(values), "o", color=BLUE, markersize=4, alpha=0.55, mew=0)
            axes.plot([mean, mean], [place - 0.24, place + 0.24], color=BLUE, linewidth=2.4)
            axes.annotate(
                percent(mean), (mean, place - 0.3), ha="center", va="bottom", fontsize=10, color=INK
            )
        axes.set_ylim(len(rows) - 0.5, -0.75)
        axes.set_yticks(range(len(rows)), [_wrapped(label) for label, _ in rows], color=INK)
        axes.grid(axis="x")
        axes.margins(x=0.14)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))

    description = "; ".join(f"{label}: {percent(float(np.mean(values)))}" for label, values in rows)
    height = 46 + sum(34 + 12 * _wrapped(label).count("\n") for label, _ in rows)
    return draw(paint, name=name, alt=f"mean {what}: {description}", width=WIDTH, height=height)


def group_curves(bands: Mapping[str, Band], *, name: str, what: str) -> str:
    """Draw a score's mean over rounds for each group of runs, with its deviation as a band.

    Args:
        bands: Mean and deviation by the group's label, at most as many as ``SERIES`` has colours.
        name: Prefix of the picture's ids.
        what: Which score it is, for the alternative text.
    """
    colours = dict(zip(bands, SERIES, strict=False))

    def paint(axes: Axes) -> None:
        for label, band in bands.items():
            axes.fill_between(
                band.rounds, band.lowest, band.highest, color=colours[label], alpha=0.13, linewidth=0
            )
            _line(axes, band.rounds, band.median, colours[label])
        _over_rounds(axes, share=True)
        ends = {label: (band.rounds[-1], band.median[-1]) for label, band in bands.items()}
        _name_ends(axes, ends, colours)

    description = "; ".join(
        f"{label}: {percent(band.median[-1])} in round {band.rounds[-1]}" for label, band in bands.items()
    )
    return draw(paint, name=name, alt=f"{what} over rounds: {description}", width=880, height=340)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, width: float = 1.8) -> None:
    """Draw a line; few points are marked, so that a single one is seen at all."""
    marker = "o" if len(x) <= 12 else None
    axes.plot(x, y, color=colour, linewidth=width, marker=marker, markersize=3.5, clip_on=False)


def _over_rounds(axes: Axes, share: bool, span: tuple[int, int] | None = None) -> None:
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.annotate(
        "round", (1, 0), (14, -4), xycoords="axes fraction", textcoords="offset points", va="top", color=MUTED
    )
    axes.margins(x=0.01)
    if span and span[0] < span[1]:
        space = (span[1] - span[0]) / 100
        axes.set_xlim(span[0] - space, span[1] + space)
    if share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))
    else:
        if axes.dataLim.ymin >= 0:  # a loss with terms that can be negative may be, too
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _name_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Write each line's name right of its end, names that would meet apart from each other."""
    if not ends:
        return
    low, high = axes.get_ylim()
    right = max(x for x, _ in ends.values())
    for (label, _), y in zip(
        ends.items(), named_at([y for _, y in ends.values()], (high - low) / 13, low), strict=True
    ):
        axes.annotate(
            _wrapped(label, 28),
            (right, y),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=colours[label],
            annotation_clip=False,
        )


def named_at(places: Sequence[float], gap: float, low: float) -> list[float]:
    """Return where lines that end at these places are named: apart, and clear of the label below the axis.

    Args:
        places: Ends of the lines, in units of the axis.
        gap: Height of a name.
        low: The axis's lower end; right below it stands what the other axis shows.
    """
    order = np.argsort(places, kind="stable")
    moved = np.array(apart(places, gap))
    lowest = low + gap / 2
    for number in order:
        moved[number] = max(moved[number], lowest)
        lowest = moved[number] + gap
    return [float(value) for value in moved]


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Return places in the same order, moved as little as it takes to be ``gap`` from each other."""
    order = np.argsort(places, kind="stable")
    sorted_places = np.asarray(places, float)[order]
    steps = np.arange(len(places)) * gap
    # Isotonic regression of place - step: pool neighbours that would meet around their mean.
    blocks: list[list[float]] = []
    for value in sorted_places - steps:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, count = blocks.pop()
            blocks[-1][0] = (blocks[-1][0] * blocks[-1][1] + value * count) / (blocks[-1][1] + count)
            blocks[-1][1] += count
    moved = np.repeat([value for value, _ in blocks], [int(count) for _, count in blocks]) + steps
    result = np.empty(len(places))
    result[order] = moved
    return [float(value) for value in result]


def _value_text(value: float, share: bool) -> str:
    return percent(value) if share else f"{value:.3f}"


def _wrapped(label: str, width: int = 22) -> str:
    return "\n".join(textwrap.wrap(label, width, break_long_words=True)) or label
