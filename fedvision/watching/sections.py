"""The sections of the page on a run: each is HTML that is made anew when it differs, and sent alone."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from fedvision import formatting
from fedvision.reporting.class_facts import ClassFacts
from fedvision.reporting.curve_pictures import curve_pictures
from fedvision.reporting.html import clients_picture, halves
from fedvision.reporting.page import environment, style
from fedvision.reporting.run_data import RunData
from fedvision.reporting.summary_sentences import clients_of, headlines, measured_on
from fedvision.watching import client_rows, sentences
from fedvision.watching.client_rows import ClientRow
from fedvision.watching.followed_run import Snapshot

SECTIONS = ("state", "scores", "curves", "classes", "clients", "spread", "cost", "events")
"""The sections by their ids, from the top of the page to its end."""
DRAWN = ("curves", "spread")
"""Those with pictures."""
EVENTS_SHOWN, CLASSES_SHOWN, FOUND_SHOWN = 30, 24, 20
_HERE = Path(__file__).parent


def page(sections: dict[str, str], *, title: str, version: str) -> str:
    """Return the whole page.

    Args:
        sections: As ``sections`` returns them.
        title: Its title.
        version: Of the sections, from which the changes go on.
    """
    filled = {name: Markup(text) for name, text in sections.items()}
    return _filled("watch.html", sections=filled, title=title, version=version)


def stylesheet() -> str:
    """Return the page's CSS: that of the report, and its own."""
    return style() + (_HERE / "watch.css").read_text(encoding="utf-8")


def script() -> str:
    """Return the page's script."""
    return (_HERE / "watch.js").read_text(encoding="utf-8")


def state_section(found: Snapshot | None, *, waits_for: str, problem: str = "") -> str:
    """Return the HTML of the first section: how the run stands, with the time left from now on.

    Args:
        found: The run; None where there is none yet.
        waits_for: The folder, as a person named it.
        problem: Why it cannot be read now.
    """
    if found is None:
        return _filled("state_absent.html", folder=waits_for, problem=problem)
    state = found.state
    now = time.time()
    left = state.seconds_left(now)
    return _filled(
        "state.html",
        facts=found.facts,
        state=state,
        kind=sentences.kind(state),
        names=sentences.NAMES,
        standing=sentences.standing(state),
        left=sentences.about(left) if left is not None and state.done < state.rounds else "",
        recorded=sentences.at(state.last_round_at, now) if state.last_round_at else "",
        problem=problem,
    ).strip()


def drawn_sections(found: Snapshot | None) -> dict[str, str]:
    """Return the HTML of the sections with pictures, which take longer; empty where nothing is drawn."""
    if found is None:
        return dict.fromkeys(DRAWN, "")
    facts = found.facts
    curves, spread = curve_pictures(facts), _spread(facts)
    values = {"facts": facts, "state": found.state, "clients_of": clients_of}
    return {name: _filled(f"{name}.html", **values, curves=curves, spread=spread).strip() for name in DRAWN}


def written_sections(found: Snapshot | None) -> dict[str, str]:
    """Return the HTML of the other sections; empty where there is nothing to show."""
    names = [name for name in SECTIONS[1:] if name not in DRAWN]
    if found is None:
        return dict.fromkeys(names, "")
    facts, state = found.facts, found.state
    rows = client_rows.client_rows(found)
    best = facts.best_view
    values: dict[str, Any] = {
        "facts": facts,
        "state": state,
        "headlines": headlines(facts),
        "measured_on": measured_on(best) if best else "",
        "measured_in": best.round if best else 0,
        "rows": client_rows.noteworthy(rows),
        "all_rows": rows,
        "tallies": found.tallies,
        "sent": found.sent,
        "seconds": found.seconds,
        "stages": {**formatting.STAGES, "total": "time in all"},
        "events": found.events[:EVENTS_SHOWN],
        "more_events": found.more_events + max(0, len(found.events) - EVENTS_SHOWN),
        **_classes(facts),
    }
    return {name: _filled(f"{name}.html", **values).strip() for name in names}


def found_clients(rows: list[ClientRow], text: str, *, across_machines: bool) -> str:
    """Return the clients whose name has a text in it, as HTML; nothing for an empty text."""
    if not text.strip():
        return ""
    found = client_rows.matching(rows, text)
    return _filled(
        "found.html", rows=found[:FOUND_SHOWN], number=len(found), text=text, across_machines=across_machines
    )


def _filled(template: str, **values: Any) -> str:
    return environment(_HERE).get_template(template).render(values)


def _classes(facts: RunData) -> dict[str, Any]:
    """Return what the table of classes shows: all of few; of many the rarest and those with least recall."""
    measured = facts.best_view
    classes = facts.class_facts(measured) if measured else []
    shown = classes
    if len(classes) > CLASSES_SHOWN:
        half = CLASSES_SHOWN // 2
        least = sorted((c for c in classes if c.recall is not None), key=lambda c: (c.recall, c.train))[:half]
        chosen = {c.label for c in [*classes[-half:], *least]}
        shown = [c for c in classes if c.label in chosen]
    return {
        "class_tables": halves(shown, 12) if measured and not facts.own_counts else [],
        "classes_left_out": len(classes) - len(shown),
        "strip": _strip(classes) if len(classes) > CLASSES_SHOWN else None,
        "several_labels": facts.several_labels and any(c.ap is not None for c in classes),
        "has_areas": any(c.ap is not None for c in classes),
        "most_train": max((c.train for c in classes), default=0),
    }


def _strip(classes: list[ClassFacts]) -> Markup:
    """Draw the recall of many classes as bars, from the most frequent class to the rarest.

    At most 200 bars are drawn; each stands for as many classes next to each other, with their mean.
    """
    step = -(-len(classes) // 200)
    bars = [classes[place : place + step] for place in range(0, len(classes), step)]
    rects = []
    for place, bar in enumerate(bars):
        known = [c.recall for c in bar if c.recall is not None]
        if known:
            share = float(np.mean(known))
            height = max(100 * share, 0.8)
            rects.append(
                f'<rect class="{bar[0].group or "medium"}" x="{place}" y="{100 - height:.1f}" width=".82" '
                f'height="{height:.1f}"/>'
            )
    lowest = min((c for c in classes if c.recall is not None), key=lambda c: c.recall or 0.0, default=None)
    alt = f"recall of {len(classes)} classes, the most frequent first"
    if lowest is not None:
        alt += f"; the lowest is {formatting.percent(lowest.recall)} of {lowest.name}"
    return Markup(
        '<svg class="strip" viewBox="0 0 {} 100" preserveAspectRatio="none" role="img" aria-label="{}">'
        "{}</svg>"
    ).format(len(bars), alt, Markup("".join(rects)))


def _spread(facts: RunData) -> Markup | None:
    """Draw classes x clients; the last drawing is kept, as the counts change seldom."""
    return _drawn(_Drawing(facts)) if facts.counts.size else None


class _Drawing:
    """A picture of class counts, which is equal to another where the same would be drawn."""

    def __init__(self, facts: RunData) -> None:
        self.facts = facts
        rest = (tuple(facts.classes), tuple(facts.shown), bool(facts.names), facts.clients, facts.withheld)
        self._key = (facts.counts.shape, facts.counts.tobytes(), facts.totals.tobytes(), rest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Drawing) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=2)
def _drawn(drawing: _Drawing) -> Markup | None:
    return clients_picture(drawing.facts)
