"""What was measured over rounds, as pictures with their headings: in the report and while a run goes on."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from fedvision import formatting
from fedvision.reporting import plots
from fedvision.reporting.run_data import RunData
from fedvision.reporting.series import Series

_SHOWN = ("mean_ap", "mean_iou", "mean_dice", "accuracy", "balanced_accuracy", "tail")
"""Scores that are drawn over rounds."""


class Picture(NamedTuple):
    """A picture with its heading."""

    title: str
    svg: Markup


def curve_pictures(facts: RunData) -> list[Picture]:
    """Draw what was measured over rounds, if there are several; a picture without any line is left out."""
    if len(facts.rounds) < 2:
        return []
    span = int(facts.rounds[0]["round"]), facts.done
    loss = {"training": facts.series("train_loss")} | _views(facts, "loss")
    drawn = [("Loss", "mean loss", loss, False)]
    best = facts.best_view
    shown = list(best.scores)[:3] if best and facts.own_counts and not facts.of_pixels else _SHOWN
    for key in shown:
        name = formatting.score_name(key, facts.kinds)
        drawn.append((_capital(name), name, _views(facts, "scores", key), True))
    if best is not None:
        groups = {group: facts.series(best.view, "scores", group) for group in ("head", "medium", "tail")}
        what = f"mean {facts.rare_score} of {facts.kind} groups"
        drawn.append((f"Frequent and rare {facts.kinds}", what, groups, True))
    pictures = [
        Picture(title, Markup(plots.curves(lines, name=f"curve{i}", what=what, share=share, span=span)))
        for i, (title, what, lines, share) in enumerate(drawn)
        if any(line.values for line in lines.values())
    ]
    compared = facts.compared_by
    band = facts.client_band("local", compared)
    if band.rounds:
        pictures.append(
            Picture(
                f"{_capital(formatting.score_name(compared))} of single clients",
                Markup(plots.client_band(band, name="band", span=span)),
            )
        )
    return pictures


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _views(facts: RunData, *keys: str) -> dict[str, Series]:
    names = {"server": "server", "clients": "local", "personal": "personal"}
    return {name: facts.series(view, *keys) for name, view in names.items()}
