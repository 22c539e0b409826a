"""Pictures of what rounds across machines cost: seconds beside training, and memory over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_rounds(facts: dict[str, Any], path: Path) -> None:
    """Draw what a round costs beside its training: a bar for each side and model."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    bars = [
        (f"{model}, {name}", sides[side]["seconds beside training"], colour)
        for model, sides in facts["rounds"].items()
        for side, name, colour in (("ours", "fedvision", "#0072b2"), ("stock", "stock Flower", "#d55e00"))
    ][::-1]
    with rc_context({"font.size": 11, "svg.fonttype": "path", "svg.hashsalt": "fedvision"}):
        figure = Figure(figsize=(8, 0.6 * len(bars) + 1), layout="constrained")
        figure.patch.set_facecolor("white")
        axes = figure.add_subplot()
        for place, (_, seconds, colour) in enumerate(bars):
            low, high = seconds["median"] - seconds["min"], seconds["max"] - seconds["median"]
            axes.barh(place, seconds["median"], color=colour, xerr=[[low], [high]], height=0.6)
            axes.text(seconds["max"], place, f"  {seconds['median']:.2f}", va="center")
        axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
        axes.set_xlabel("seconds a round beside training (median and range)")
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


def draw_memory(facts: dict[str, Any], path: Path) -> None:
    """Draw every process's private memory over time."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    size = facts["large"]["bytes of the model"] / 1e9
    with rc_context({"font.size": 11, "svg.fonttype": "path", "svg.hashsalt": "fedvision"}):
        figure = Figure(figsize=(8, 4), layout="constrained")
        figure.patch.set_facecolor("white")
        axes = figure.add_subplot()
        for name, samples in facts["large"]["memory"].items():
            axes.plot([s[0] for s in samples], [s[1] for s in samples], label=name)
        axes.axhline(size, color="#999999", linestyle=":", label=f"one model ({size:.2f} GB)")
        axes.set_xlabel("seconds")
        axes.set_ylabel("private memory, GB")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
