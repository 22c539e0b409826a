"""The page that compares several runs: one table, and a picture for each of the figures that matter most."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from fedvision import formatting
from fedvision.files import recording, replace_file
from fedvision.reporting import plots
from fedvision.reporting.baselines_compared import beside
from fedvision.reporting.compare import (
    WORST,
    Group,
    best_groups,
    compare,
    group_kinds,
    notices,
    rarest_scores,
    shown_scores,
)
from fedvision.reporting.curve_pictures import Picture
from fedvision.reporting.page import render_page
from fedvision.runs.folder import RunFolder

DRAWN = ("mean_ap", "accuracy", "balanced_accuracy", "tail", WORST)
RAREST = 5


def write_comparison(folders: Sequence[RunFolder], path: Path) -> Path:
    """Write one HTML page that compares several runs, and return its path.

    Raises:
        RunFolderError: A file in a folder is damaged.
        RecordError: The page cannot be written.
    """
    groups = compare(folders)
    links = {run.path: _link(run.path / "report.html", path.parent) for group in groups for run in group.runs}
    with recording("the comparison", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, comparison_page(groups, links))
    return path


def _link(report: Path, base: Path) -> str | None:
    """Return the way from a page's folder to a run's report, or None where there is no report."""
    return Path(os.path.relpath(report, base)).as_posix() if report.exists() else None


def comparison_page(groups: Sequence[Group], links: Mapping[Path, str | None]) -> str:
    """Return the page.

    Args:
        groups: The runs, those that repeat each other together.
        links: The way to each run's own report by run folder; None where there is none.
    """
    scores, kinds = shown_scores(groups), group_kinds(groups)
    over_rounds = "mean_ap" if kinds == "labels" else "balanced_accuracy"
    return render_page(
        "comparison.html",
        groups=groups,
        runs=[run for group in groups for run in group.runs],
        keys=list(groups[0].settings) if groups else [],
        scores=scores,
        names={score: formatting.score_name(score, "").strip() for score in scores},
        kinds=kinds,
        rarest=rarest_scores(groups, RAREST),
        best={score: best_groups(groups, score) for score in scores},
        notices=notices(groups),
        beside=[(group.label, row) for group in groups for row in beside(group, scores)],
        repeated=any(len(group.runs) > 1 for group in groups),
        views={run.best_view.view for group in groups for run in group.runs if run.best_view},
        dots=_dots(groups, scores, kinds),
        over_rounds=formatting.score_name(over_rounds),
        curves=_curves(groups, over_rounds),
        links=links,
    )


def _dots(groups: Sequence[Group], scores: Sequence[str], kinds: str) -> list[Picture]:
    pictures = []
    drawn = [score for score in DRAWN if score in scores] or list(scores)[:3]
    for place, score in enumerate(drawn):
        rows = [(group.label, values) for group in groups if (values := group.values(score))]
        name = formatting.score_name(score, kinds)
        svg = plots.dots(rows, name=f"dots{place}", what=name)
        pictures.append(Picture(name[:1].upper() + name[1:], Markup(svg)))
    return pictures


def _curves(groups: Sequence[Group], score: str) -> Markup | None:
    bands = {group.label: group.band(score) for group in groups}
    bands = {label: band for label, band in bands.items() if band.rounds}
    if not 1 <= len(bands) <= len(plots.SERIES):
        return None
    return Markup(plots.group_curves(bands, name="curves", what=formatting.score_name(score)))
