"""The report's two matrices as pictures: clients x classes, and true x predicted classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, Normalize, PowerNorm
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from fedvision.formatting import percent, whole
from fedvision.reporting.svg import LINE, draw
from fedvision.tasks.confusion import ConfusionCounts

WIDTH = 880
"""Pixels on a wide page."""
_WRITTEN = 20
"""Up to so many classes, cells have room for their number."""

_DRAWN = 440
"""Rows of the confusion matrix at most: as many as are legible on a page."""
_NAMED, _LONGEST = 24, 12
"""Up to so many clients have room for their names, and for so many letters of each."""


def clients_by_classes(
    counts: NDArray[np.int64],
    classes: Sequence[str],
    order: NDArray[np.int64],
    *,
    name: str,
    sample: str | None = None,
    clients: Sequence[str] = (),
    kinds: str = "classes",
    counted: str = "training images",
) -> str:
    """Draw how many training images of each class every client has, on a logarithmic scale.

    Args:
        counts: int64 [K, C].
        classes: Names [C].
        order: Class numbers from the top row to the bottom one [C].
        name: Prefix of the picture's ids.
        sample: ``"100 of 1,000,000 clients, drawn at random"`` where these are not all; columns have no
            numbers then.
        clients: Names [K], where clients have some; up to 24 stand at their columns.
        kinds: What the rows are, in the plural.
        counted: What the counts are of.
    """
    number, row = len(counts), _row_height(len(classes))
    named = 0 < len(clients) <= _NAMED
    shown = counts[:, order].T
    top = max(int(counts.max(initial=1)), 2)
    ticks = [10**power for power in range(len(str(top)))]
    ticks += [top] if top > 2.5 * ticks[-1] else []

    def paint(axes: Axes) -> None:
        image = _image(axes, shown, LogNorm(1, top), lightest=0.14)
        axes.set_yticks(*_labels([classes[c] for c in order], row))
        axes.set_xlabel(sample or "client", loc="left")
        if named:
            axes.set_xticks(range(number), [_shortened(client) for client in clients], rotation=90)
        else:
            axes.xaxis.set_major_locator(NullLocator() if sample else MaxNLocator(20, integer=True))
        if number <= _NAMED and len(classes) <= _WRITTEN:
            _write_cells(axes, shown, image, _short)
        _colour_bar(axes, image, counted.removeprefix("training "), ticks, lambda value: whole(round(value)))

    empty = float((counts == 0).mean()) if counts.size else 0.0
    alt = (
        f"{counted} of {sample or f'{number} clients'} (columns) in {len(classes)} {kinds} (rows, "
        f"most frequent first); {percent(empty, 0)} of the cells are empty"
    )
    return draw(paint, name=name, alt=alt, width=WIDTH, height=row * len(classes) + (140 if named else 62))


def classes_per_row(classes: int) -> int:
    """Return how many classes, next to each other by frequency, share a row of the confusion matrix."""
    return max(1, -(-classes // _DRAWN))


def confusion(
    counted: ConfusionCounts, classes: Sequence[str], order: NDArray[np.int64], *, name: str
) -> str:
    """Draw which class was taken for which: each row, a true class, as shares of its images.

    Where there are more than 440 classes, a row and a column stand for several classes next to each other.

    Args:
        counted: Counts over C classes.
        classes: Names [C].
        order: Class numbers from the top row to the bottom one [C].
        name: Prefix of the picture's ids.
    """
    step = classes_per_row(len(classes))
    place = np.argsort(order) // step
    size = -(-len(classes) // step)
    matrix = np.zeros((size, size), np.int64)
    np.add.at(matrix, (place[counted.true], place[counted.predicted]), counted.counts)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    row = _row_height(size)
    several = f", {step} a row" if step > 1 else ""

    def paint(axes: Axes) -> None:
        # The square root lets a mistake of one in a hundred be seen beside a full diagonal.
        image = _image(axes, shares, PowerNorm(0.5, 0, 1), lightest=0.05)
        places, names = _labels([classes[c] for c in order[::step]], row)
        axes.set_yticks(places, names)
        font = _font_size(row)
        wide = max(map(len, names)) * font * 0.65 > 0.85 * WIDTH / len(names)
        axes.set_xticks(places, names, rotation=90 if wide else 0, fontsize=font)
        axes.set_xlabel("named by the model", loc="left")
        axes.set_ylabel(f"true class{several}", loc="top")
        if len(classes) <= _WRITTEN:
            _write_cells(axes, shares, image, lambda share: f"{100 * share:.0f}")
        _colour_bar(axes, image, "of the row", [0.01, 0.05, 0.2, 0.5, 1], lambda value: percent(value, 0))

    right = percent(int(counted.right_of.sum()) / max(counted.examples, 1))
    where = "named rightly" if step > 1 else "on the diagonal, named rightly,"
    alt = (
        f"confusion matrix of {len(classes)} classes{several}, most frequent in training first; {where} are "
        f"{right} of {whole(counted.examples)} images"
    )
    return draw(paint, name=name, alt=alt, width=WIDTH, height=row * size + 130)


def _image(axes: Axes, values: NDArray[Any], norm: Normalize, *, lightest: float) -> AxesImage:
    """Fill the axes with cells from a light blue to a dark one; zero has no colour at all."""
    light_to_dark = matplotlib.colormaps["Blues"](np.linspace(lightest, 1, 256))
    image = axes.imshow(
        np.ma.masked_equal(values, 0),
        norm=norm,
        cmap=ListedColormap(light_to_dark),
        aspect="auto",
        interpolation="none",  # the picture holds a pixel for each cell, and the page enlarges it
    )
    axes.tick_params(labelsize=_font_size(_row_height(len(values))), axis="y")
    for spine in axes.spines.values():
        spine.set(visible=True, color=LINE)
    return image


def _labels(names: Sequence[str], row: float) -> tuple[list[int], list[str]]:
    """Return where the axis names classes and how: all of them, or every so many where they are too many."""
    step = 1 if row >= 8 else -(-len(names) // 40)
    places = list(range(0, len(names), step))
    return places, [_cut(names[place]) for place in places]


def _colour_bar(
    axes: Axes, image: AxesImage, label: str, ticks: Sequence[float], text: Callable[[float], str]
) -> None:
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(
        image, ax=axes, pad=0.012, fraction=0.03, shrink=0.9, aspect=20, anchor=(0.0, 1.0), ticks=list(ticks)
    )
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.set_title(label, fontsize=10, loc="right", pad=9)
    for spine in bar.ax.spines.values():
        spine.set_visible(False)


def _write_cells(axes: Axes, values: NDArray[Any], image: AxesImage, written: Callable[[float], str]) -> None:
    """Write each cell's number, white where the cell is dark; empty cells stay empty."""
    darkness = np.ma.filled(image.norm(np.ma.masked_equal(values, 0).astype(float)), 0)
    for (i, j), value in np.ndenumerate(values):
        if value and (text := written(value)) != "0":
            colour = "white" if darkness[i, j] > 0.55 else "#303036"
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)


def _short(count: float) -> str:
    return str(int(count)) if count < 10_000 else f"{count / 1000:.0f}k"


def _row_height(classes: int) -> float:
    """Return pixels of a class's row: comfortable for few classes, just legible for a hundred."""
    if classes <= _WRITTEN:
        return 26.0
    return 14.0 if classes <= 50 else 8.6 if classes <= 120 else max(1.0, 880 / classes)


def _font_size(row: float) -> float:
    return 10.5 if row >= 20 else max(row - 2, 6.5)


def _cut(text: str, longest: int = 22) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
