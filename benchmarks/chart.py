"""Draw what the losses do for frequent and rare classes, from the run folders of simulations/long-tail.toml.

fedvision simulate simulations/long-tail.toml --out runs/long-tail
python benchmarks/chart.py runs/long-tail simulations/long-tail.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedvision.reporting.compare import Group, compare
from fedvision.runs.folder import RunFolder

SHADES = {"head": "#0072b2", "medium": "#009e73", "tail": "#d55e00"}
"""Okabe and Ito's colours, which colour-blind people distinguish."""


def label(group: Group) -> str:
    """Return the loss and whose counts it sees, where it sees any."""
    loss = group.runs[0].config.loss
    return loss.use if loss.use in ("cross-entropy", "focal") else f"{loss.use} ({loss.prior} counts)"


def draw(groups: list[Group], path: Path) -> None:
    """Write the chart: a row for each loss, a point for each third of the classes, bars of one deviation."""
    ranked = sorted(groups, key=lambda group: float(np.mean(group.values("tail"))))
    with rc_context({"font.size": 11, "svg.fonttype": "path", "svg.hashsalt": "fedvision"}):
        figure = Figure(figsize=(9, 0.45 * len(ranked) + 1.5), layout="constrained")
        figure.patch.set_facecolor("white")
        axes = figure.add_subplot()
        for score, colour in SHADES.items():
            spreads = [group.spread(score) for group in ranked]
            means = [100 * spread.mean for spread in spreads if spread]
            deviations = [100 * (spread.deviation or 0) for spread in spreads if spread]
            axes.errorbar(
                means, range(len(ranked)), xerr=deviations, fmt="o", color=colour, elinewidth=2, markersize=7,
                label={"head": "most frequent 3", "medium": "middle 4", "tail": "rarest 3"}[score],
            )  # fmt: skip
        axes.set_yticks(range(len(ranked)), [label(group) for group in ranked])
        axes.set_xlim(0, 100)
        axes.set_xlabel("recall, % (mean and deviation over seeds)")
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Read the folders and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="folder with one run folder for each experiment")
    parser.add_argument("picture", type=Path, help="SVG or PNG file to write")
    options = parser.parse_args()
    folders = [RunFolder.read(path.parent) for path in sorted(options.sweep.glob("*/config.toml"))]
    draw(compare(folders), options.picture)


if __name__ == "__main__":
    main()
