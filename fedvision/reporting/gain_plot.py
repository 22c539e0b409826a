"""A picture of who gains by taking part: clients by their own model's score, and the federated one's."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedvision.baselines.gains import Gains
from fedvision.formatting import percent, plural, score_name
from fedvision.reporting.svg import BLUE, INK, MUTED, ORANGE, draw

WIDTH, HEIGHT = 880, 280
"""Pixels on a wide page."""


def draw_gains(found: Gains, *, name: str) -> str:
    """Draw each client's own score and, at the end of a line, the federated model's on the same images.

    Args:
        found: Scores of n clients, of which 1,000 are still told apart from each other as a band.
        name: Prefix of the picture's ids.
    """
    order = np.argsort(found.alone, kind="stable")
    alone, federated = found.alone[order], found.federated[order]
    places = np.arange(len(order))
    gains, losses = federated > alone, federated < alone
    dot = float(np.clip(500 / len(order), 1.4, 6))
    line = float(np.clip(400 / len(order), 0.6, 2.4))

    def paint(axes: Axes) -> None:
        for chosen, colour in ((gains, BLUE), (losses, ORANGE)):
            axes.vlines(
                places[chosen], alone[chosen], federated[chosen], color=colour, linewidth=line, alpha=0.7
            )
            axes.plot(
                places[chosen], federated[chosen], "o", color=colour, markersize=dot, mew=0, clip_on=False
            )
        axes.plot(places, alone, "o", color=MUTED, markersize=dot, mew=0, clip_on=False)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlim(-0.5, len(order) - 0.5)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if len(order) <= 30:
            axes.set_xticks(places, [str(found.clients[place]) for place in order], color=INK)
        axes.set_xlabel("client" if len(order) <= 30 else "clients, sorted", color=MUTED)
        axes.set_ylabel(score_name(found.score), color=MUTED)

    alt = (
        f"{score_name(found.score)} of {plural(len(order), 'client')} alone and federated: "
        f"{int(gains.sum())} gain, {int(losses.sum())} lose; alone from {percent(float(alone.min()))} to "
        f"{percent(float(alone.max()))}, federated from {percent(float(federated.min()))} to "
        f"{percent(float(federated.max()))}"
    )
    return draw(paint, name=name, alt=alt, width=WIDTH, height=HEIGHT)
