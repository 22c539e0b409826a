"""A run's figures for Prometheus, in its text format 0.0.4.

Labels are of few values: states, kinds of refusal, scores, the classes of an experiment up to 200, and names
of clients across machines up to 200, which are as many as an administrator has put keys into a folder.
Simulated clients may be a million, and reasons are sentences: neither is a label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import get_args

from fedvision import __version__
from fedvision.reporting.run_data import VIEWS
from fedvision.runs.run_state import Status
from fedvision.types import Rejection
from fedvision.watching.followed_run import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST = 200
"""Up to so many clients or classes, each has figures of its own."""
_STATES = ("absent", *get_args(Status))


def metrics(found: Snapshot | None) -> str:
    """Return all figures; of a run that is not there its state alone."""
    text = Exposition()
    state = found.state if found else None
    now = state.status if state else "absent"
    text.add(
        "run_state",
        "gauge",
        "1 for the state in which the run is, 0 for the others.",
        [({"state": name}, float(name == now)) for name in _STATES],
    )
    if found is not None and state is not None:
        text.add(
            "run_info",
            "gauge",
            "The run, and the version that watches it.",
            [({"name": state.name, "version": __version__}, 1)],
        )
        _rounds(text, found)
        _clients(text, found)
        _members(text, found)
        _scores(text, found)
    return str(text)


def _rounds(text: Exposition, found: Snapshot) -> None:
    state, seconds = found.state, dict(found.seconds)
    text.add(
        "rounds_total",
        "counter",
        "Rounds that are recorded; fewer after a resume from a checkpoint.",
        [({}, state.done)],
    )
    text.add("rounds_planned", "gauge", "Rounds of the experiment.", [({}, state.rounds)])
    total = seconds.pop("total", 0.0)
    text.add("round_seconds_total", "counter", "Seconds of all recorded rounds.", [({}, total)])
    text.add(
        "stage_seconds_total",
        "counter",
        "Seconds of all recorded rounds by stage.",
        [({"stage": stage}, value) for stage, value in seconds.items()],
    )
    if state.round_seconds is not None:
        text.add(
            "recent_round_seconds",
            "gauge",
            "Median seconds of the last five rounds.",
            [({}, state.round_seconds)],
        )
    if state.last_round_at is not None:
        text.add(
            "last_round_timestamp_seconds",
            "gauge",
            "When the last round was recorded, Unix time.",
            [({}, state.last_round_at)],
        )
    sent = found.sent
    text.add(
        "bytes_total",
        "counter",
        "Bytes of messages, to clients (down) and from them (up).",
        [({"direction": way}, sent[way]) for way in ("down", "up")],
    )


def _clients(text: Exposition, found: Snapshot) -> None:
    state, tallies, last = found.state, found.tallies, found.tallies.last
    known = found.facts.clients if not state.across_machines else len(found.facts.participants)
    text.add(
        "clients_known",
        "gauge",
        "Clients of the run; across machines, those that joined or tried to.",
        [({}, known)],
    )
    if state.across_machines:
        text.add("clients_connected", "gauge", "Clients that take part now.", [({}, len(state.here))])
        text.add("clients_refused", "gauge", "Clients that may not take part.", [({}, len(state.refused))])
        text.add(
            "clients_gone", "gauge", "Clients that left, or whose key was removed.", [({}, len(state.gone))]
        )
    text.add(
        "clients_late",
        "gauge",
        "Clients at work on an older request as the last round began.",
        [({}, len(state.late))],
    )
    text.add(
        "clients_replied",
        "gauge",
        "Clients whose answers the last round used.",
        [({}, len(last.get("clients") or ()))],
    )
    text.add("replies_used_total", "counter", "Answers that rounds used.", [({}, tallies.answers)])
    stages = sorted({stage for _, stage in tallies.unused} | {"training", "evaluation"})
    text.add(
        "replies_unused_total",
        "counter",
        "Answers that rounds did not use, or that did not come.",
        [
            ({"kind": kind, "stage": stage}, tallies.unused[kind, stage])
            for kind in get_args(Rejection)
            for stage in stages
        ],
    )
    text.add(
        "replies_late_total",
        "counter",
        "Answers that came after the round of their request.",
        [({"outcome": outcome}, tallies.late[outcome]) for outcome in ("used", "discarded")],
    )


def _members(text: Exposition, found: Snapshot) -> None:
    members = [one.member for one in found.facts.participants]
    if 0 < len(members) <= MOST:
        names = [member.name for member in members]
        here = {member.name for member in found.state.here}
        text.add(
            "client_connected",
            "gauge",
            "Whether a client takes part now.",
            [({"client": name}, float(name in here)) for name in dict.fromkeys(names)],
        )
        used = {member.name: found.clients[member.client].used for member in members}
        text.add(
            "client_rounds_total",
            "counter",
            "Rounds that used an answer of a client.",
            [({"client": name}, number) for name, number in used.items()],
        )


def _scores(text: Exposition, found: Snapshot) -> None:
    facts = found.facts
    measured = [one for view in VIEWS if (one := facts.measurement(view))]
    scores = [
        ({"view": one.view, "score": key}, value)
        for one in measured
        for key, value in one.scores.items()
        if value is not None
    ]
    text.add(
        "score_ratio",
        "gauge",
        "Scores of the last measurement, 0 to 1, on the server's images or on "
        "those that clients keep (local; with their personal models: personal).",
        scores,
    )
    text.add(
        "score_round",
        "gauge",
        "After which round they were measured.",
        [({"view": one.view}, one.round) for one in measured],
    )
    losses = [({"view": one.view}, one.loss) for one in measured if one.loss is not None]
    text.add("loss_nats", "gauge", "Mean loss of the last measurement.", losses)
    classes = facts.class_facts(facts.best_view) if measured else []
    if len(classes) <= MOST:
        text.add(
            "class_recall_ratio",
            "gauge",
            "Recall of each class in the last measurement, 0 to 1.",
            [({"class": one.name}, one.recall) for one in classes if one.recall is not None],
        )


class Exposition:
    """A text with figures, each family with its help and its type."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(
        self, name: str, kind: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], float]]
    ) -> None:
        """Add a family; one without samples is left out.

        Args:
            name: Without the prefix of this program.
            kind: ``gauge`` or ``counter``.
            meaning: One sentence.
            samples: Labels and value of each; of samples with the same labels the first.
        """
        name = f"fedvision_{name}"
        distinct: dict[str, float] = {}
        for labels, value in samples:
            distinct.setdefault(_labels(labels), float(value))
        if not distinct:
            return
        self._lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        self._lines += [f"{name}{labels} {_number(value)}" for labels, value in distinct.items()]

    def __str__(self) -> str:
        return "\n".join([*self._lines, ""])


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
