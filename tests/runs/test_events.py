"""Every event of a round is named, with round and client, on the page and on the screen."""

from __future__ import annotations

from typing import Any

from fedvision.reporting.html import write_report
from fedvision.reporting.run_data import read_facts
from fedvision.runs.events import BEGAN, Event, all_events, round_events, shown
from tests.reporting.sample import MakeRun

RECORD: dict[str, Any] = {
    "round": 4,
    "clients": [],
    "changed": False,
    "refused": [
        {"client": 0, "stage": "training", "kind": "failed", "reason": "no answer by the deadline of 30 s"},
        {"client": 1, "stage": "evaluation", "kind": "refused", "reason": "its counts are negative"},
    ],
    "late": [
        {"client": 2, "requested": 3, "used": True, "weight": 0.7071, "loss": 1.0, "examples": 3},
        {
            "client": 3,
            "requested": 2,
            "used": False,
            "reason": "its answer came 2 rounds late and was discarded",
        },
    ],
    "set_aside": [{"client": 5, "reason": "3 of its answers were refused"}],
}
EVENTS = [
    Event(4, "south (0)", "no answer by the deadline of 30 s"),
    Event(4, "1", "measuring: refused: its counts are negative"),
    Event(4, "2", "requested in round 3, answered late, used with weight 0.71"),
    Event(4, "3", "requested in round 2: its answer came 2 rounds late and was discarded"),
    Event(4, "5", "set aside, not selected again: 3 of its answers were refused"),
    Event(4, "", "the model stayed as it was: 0 usable answers"),
]


def test_a_rounds_events_are_all_named() -> None:
    assert round_events(RECORD, {0: "south"}) == EVENTS


def test_late_answers_are_no_events_where_a_run_lives_on_them() -> None:
    found = round_events(RECORD, {0: "south"}, buffered=True)
    assert found == [event for event in EVENTS if event.client != "2"]


def test_records_of_earlier_versions_have_no_events() -> None:
    assert round_events({"round": 1, "clients": [0]}, {}) == []


def test_events_are_ordered_by_round_and_time() -> None:
    register = [
        {"round": 1, "client": None, "what": BEGAN},
        {"round": 4, "client": None, "what": "the SuperLink did not answer and was started again"},
        {"round": 5, "client": "west (2)", "what": "it is not there"},
    ]
    found = all_events([RECORD], register, {0: "south"})
    assert found == [
        Event(4, "", register[1]["what"] or ""),
        *EVENTS,
        Event(5, "west (2)", "it is not there"),
    ]


def test_a_screen_shows_a_few() -> None:
    lines = shown(EVENTS, most=4)
    assert lines[0] == "round 4: client south (0): no answer by the deadline of 30 s"
    assert lines[4:] == ["round 4: 2 more of this kind"]
    assert shown([EVENTS[5]]) == ["round 4: the model stayed as it was: 0 usable answers"]
    assert shown([]) == []


def test_the_report_names_every_event(make_run: MakeRun) -> None:
    folder = make_run(rounds=2, changes={key: RECORD[key] for key in ("refused", "late", "set_aside")})
    folder.append_event(2, "the run had been stopped or killed, and went on")
    for client, name in enumerate(("south", "north")):
        folder.members().joined(client, name, "", node=client, sharing="none")
    facts = read_facts(folder)
    assert len(facts.events) == 11
    page = write_report(folder).read_text()
    for event in facts.events:
        assert f'<td class="name">{event.client or "–"}</td><td class="name">{event.what}</td>' in page
    assert "south (0)" in page
    assert "north (1)" in page
