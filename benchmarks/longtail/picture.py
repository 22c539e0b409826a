"""The picture of a table: a row for each method, its recall of frequent, middle and rare classes."""

from __future__ import annotations

import statistics
from pathlib import Path

from harness import Store
from matplotlib import rc_context
from matplotlib.figure import Figure
from protocol import Protocol, thirds

SHADES = {"head": "#0072b2", "medium": "#009e73", "tail": "#d55e00", "balanced_accuracy": "#000000"}
"""Okabe and Ito's colours, which colour-blind people distinguish."""


def draw(store: Store, protocol: Protocol, path: Path, split: str = "") -> None:
    """Write the picture, the best by the table's first score on top; nothing where no method was measured.

    Args:
        store: The runs.
        protocol: Whose methods are drawn.
        path: The SVG file.
        split: The variant of the experiment.
    """
    found = dict(protocol.ranked(store, split))
    if not found:
        return
    ranked = [*reversed(found)]
    with rc_context({"font.size": 11, "svg.fonttype": "path", "svg.hashsalt": "fedvision"}):
        figure = Figure(figsize=(9, 0.32 * len(ranked) + 1.5), layout="constrained")
        figure.patch.set_facecolor("white")
        axes = figure.add_subplot()
        names = {score: name for name, score in protocol.scores.items()}
        for score in (one for one in SHADES if one in names):
            values = [[thirds(run)[score] for run in found[method]] for method in ranked]
            axes.errorbar(
                [statistics.mean(own) for own in values],
                range(len(ranked)),
                xerr=[statistics.stdev(own) if len(own) > 1 else 0.0 for own in values],
                fmt="D" if score == "balanced_accuracy" else "o",
                color=SHADES[score],
                elinewidth=1.5,
                markersize=6,
                label=names[score],
            )
        axes.set_yticks(range(len(ranked)), ranked)
        axes.set_xlim(0, 100)
        axes.set_ylim(-0.7, len(ranked) - 0.3)
        axes.set_xlabel("recall on the test images, % (mean and deviation over seeds)")
        axes.grid(axis="both", color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(path, metadata={"Date": None})
