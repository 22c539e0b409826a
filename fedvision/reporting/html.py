"""The report of one run: a single HTML file that needs no network, for a screen, a phone and paper."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from fedvision import formatting
from fedvision.reporting import baselines, gain_plot, matrices, plots
from fedvision.reporting.boxes import box_section
from fedvision.reporting.class_facts import ClassFacts, by_frequency
from fedvision.reporting.curve_pictures import Picture, curve_pictures
from fedvision.reporting.explanations import read_section
from fedvision.reporting.page import png_uri, render_page
from fedvision.reporting.personal_models import personal_rows, personal_sentence
from fedvision.reporting.run_data import VIEWS, Measurement, RunData, read_facts
from fedvision.reporting.summary_sentences import (
    calibrated,
    clients_of,
    headlines,
    measured_on,
    summary_sentences,
    trust,
)
from fedvision.reporting.worst_images import worst_section
from fedvision.runs import worst_images
from fedvision.runs.folder import RunFolder
from fedvision.runs.misclassified import Misclassified
from fedvision.tasks.calibration import Reliability
from fedvision.tasks.intervals import Interval

EVENTS_SHOWN, MEMBERS_SHOWN, CLASSES_SHOWN = 200, 200, 400


class Mistake(NamedTuple):
    """One image on the wall."""

    source: str
    predicted: str
    confidence: str


def write_report(folder: RunFolder) -> Path:
    """Write ``report.html`` into a run folder, from what is in the folder alone, and return its path.

    Raises:
        RunFolderError: A file in the folder is damaged.
        RecordError: The report cannot be written.
    """
    facts = read_facts(folder)
    measured = facts.best_view
    classes, scores = facts.class_facts(measured), _score_rows(facts)
    page = render_page(
        "report.html",
        facts=facts,
        headlines=headlines(facts),
        summary_sentences=summary_sentences(facts),
        measured_on=measured_on(measured) if measured else "",
        clients_of=clients_of,
        curves=curve_pictures(facts),
        scores=scores,
        has_intervals=any(interval for _, values in scores for _, interval in values),
        class_tables=halves(both_ends(classes, CLASSES_SHOWN)),
        classes_left_out=max(0, len(classes) - CLASSES_SHOWN),
        boxes=box_section(facts),
        several_labels=facts.several_labels and any(c.ap is not None for c in classes),
        has_areas=any(c.ap is not None for c in classes),
        reliability=_reliability(facts.reliability),
        trust=trust(facts),
        calibrated=calibrated(facts.rounds[-1] if facts.rounds else {}),
        personal=personal_rows(facts),
        personal_sentence=personal_sentence(facts),
        most_train=max((c.train for c in classes), default=0),
        clients=clients_picture(facts),
        confusion=_confusion(facts, measured),
        classes_per_row=matrices.classes_per_row(len(facts.classes)),
        wall=_wall(folder.mistakes(), facts.classes),
        worst=worst_section(worst_images.read(folder.path), facts.classes),
        gains=_gains(facts),
        explained=read_section(folder.path),
        members=facts.participants[:MEMBERS_SHOWN],
        events=facts.events,
        events_shown=EVENTS_SHOWN,
        notices=_notices(facts),
        stages={**formatting.STAGES, "total": "time in all"},
        again=_again(facts),
    )
    return folder.write_page("report.html", page)


def _gains(facts: RunData) -> dict[str, Any] | None:
    """Return what the report says of the baselines; None where there are none."""
    found = facts.baselines
    if found is None:
        return None
    compared_on, rows, left_out = baselines.client_rows(facts, found)
    pictures = [
        Picture(f"On {baselines.ON[on]}", Markup(gain_plot.draw_gains(one, name=f"gains-{on}")))
        for on in baselines.ON
        if (one := found.gains(on))
    ]
    tables = baselines.score_tables(facts, found)
    return {
        "tables": tables,
        "has_intervals": any(cell.interval for table in tables for _, cells in table.rows for cell in cells),
        "sentences": baselines.gain_sentences(facts, found),
        "pictures": pictures,
        "compared_on": compared_on,
        "clients": rows,
        "left_out": left_out,
    }


def _again(facts: RunData) -> str:
    """Return the command that runs the experiment again, into a new folder.

    Where it is known how the run was called, the command holds from any folder, else from the run folder's
    parent.
    """
    how = facts.invocation
    folder = facts.path.resolve() if "folder" in how else Path(facts.path.name)
    arguments = [str(folder / "config.toml"), "--out", str(folder.with_name(f"{folder.name}-again"))]
    if "server" in how:
        arguments = [*how["server"], *arguments, "--wait-for", str(facts.clients or 1)]
    elif facts.config.data.use == "elsewhere":  # the images are on the clients' machines
        arguments = ["server", *arguments, "--tls", "pki/server", "--wait-for", str(facts.clients or 1)]
    else:
        arguments = ["simulate", *arguments]
    call = shlex.join(["fedvision", *arguments])
    modules = how.get("modules") or []
    if modules and re.search(r'"[\w.]+:[\w.]+"', facts.config_text):  # a plug-in by path
        call = f"PYTHONPATH={shlex.quote(os.pathsep.join(modules))} {call}"
    # Relative paths in [data] are as seen from the folder in which the run was started.
    return f"cd {shlex.quote(how['folder'])} && {call}" if "folder" in how else call


def both_ends(rows: Sequence[ClassFacts], most: int) -> Sequence[ClassFacts]:
    """Return rows, or of more than ``most`` as many from the beginning as from the end."""
    return rows if len(rows) <= most else [*rows[: most // 2], *rows[-(most // 2) :]]


def halves(rows: Sequence[ClassFacts], longest: int = 24) -> list[Sequence[ClassFacts]]:
    """Return rows as one table, or as two side by side where one would be too long."""
    if len(rows) <= longest:
        return [rows] if rows else []
    middle = (len(rows) + 1) // 2
    return [rows[:middle], rows[middle:]]


def _score_rows(facts: RunData) -> list[tuple[str, list[tuple[float | None, Interval | None]]]]:
    """Return every score by name, for each view that was measured a value and its interval."""
    views = [measured for view in VIEWS if (measured := facts.measurement(view))]
    intervals = [facts.intervals(measured) for measured in views]
    keys = formatting.in_order({key for measured in views for key in measured.scores})
    name = partial(formatting.score_name, of=facts.kinds)
    return [
        (
            name(key),
            [(one.scores.get(key), ends.get(key)) for one, ends in zip(views, intervals, strict=True)],
        )
        for key in keys
    ]


def _notices(facts: RunData) -> list[str]:
    """Return the notices on the whole run that are no events."""
    reported = {event.what for event in facts.events}
    return [notice for notice in facts.summary.get("notices", []) if notice not in reported]


def clients_picture(facts: RunData) -> Markup | None:
    """Draw the class counts of the clients, or of those that are shown; None where nobody's are known."""
    if not facts.counts.size:
        return None
    order = by_frequency(facts.totals)
    sample = (
        formatting.sample(len(facts.counts), facts.clients) if len(facts.counts) < facts.clients else None
    )
    if sample:
        sample += "; the others do not share their counts" if facts.withheld else ", drawn at random"
    return Markup(
        matrices.clients_by_classes(
            facts.counts,
            facts.classes,
            order,
            name="counts",
            sample=sample,
            clients=facts.shown if facts.names else (),
            kinds=facts.kinds,
            counted="training pixels"
            if facts.of_pixels
            else "class counts"
            if facts.own_counts
            else "training images",
        )
    )


def _confusion(facts: RunData, measured: Measurement | None) -> Markup | None:
    if measured is None or not measured.confusion.examples:
        return None
    order = by_frequency(facts.totals)
    return Markup(matrices.confusion(measured.confusion, facts.classes, order, name="confusion"))


def _reliability(found: Reliability | None) -> Markup | None:
    return Markup(plots.reliability(found, name="reliability")) if found and found.images.any() else None


def _wall(mistakes: Misclassified | None, classes: Sequence[str]) -> list[tuple[str, list[Mistake]]]:
    """Return the wrongly named images by their true class, in the order in which they were kept."""
    wall: dict[str, list[Mistake]] = {}
    if mistakes is None:
        return []
    for image, true, predicted, confidence in zip(
        mistakes.images, mistakes.labels, mistakes.predicted, mistakes.confidence, strict=True
    ):
        shown = Mistake(png_uri(image), _name(classes, predicted), formatting.percent(float(confidence), 0))
        wall.setdefault(_name(classes, true), []).append(shown)
    return list(wall.items())


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else str(label)
