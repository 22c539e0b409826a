"""The page on a run: what it says, and whether everybody can read it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from fedvision.runs.folder_lock import claimed
from fedvision.runs.run_state import RunState, Status
from fedvision.watching import sections, sentences
from fedvision.watching.followed_run import FollowedRun
from tests.watching.sample import WrittenRun
from tests.work import lines_of


class Structure(HTMLParser):
    """What of a page matters to a keyboard, a screen reader and a policy."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def page_on(path: Path) -> str:
    followed = FollowedRun(path)
    followed.poll()
    found = followed.snapshot()
    state = sections.state_section(found, waits_for=str(path), problem=followed.problem)
    rest = {**sections.written_sections(found), **sections.drawn_sections(found)}
    return sections.page({"state": state, **rest}, title="t", version="v")


def check(text: str) -> Structure:
    found = Structure(text)
    names = [tag for tag, _ in found.tags]
    assert names.count("h1") == 1
    assert {"main", "header"} <= set(names)
    levels = [int(tag[1]) for tag in names if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert names.count("caption") == names.count("table")
    assert all(one.get("scope") in ("col", "row") for one in found.of("th"))
    labelled = {one["for"] for one in found.of("label")}
    assert {one["id"] for one in found.of("input", "progress")} <= labelled
    ids = [one["id"] for _, one in found.tags if one.get("id")]
    assert len(ids) == len(set(ids))
    for one in found.of("svg"):
        if one.get("role") == "img":
            assert one["aria-label"]
    for tag, one in found.tags:
        assert not any(name.startswith("on") for name in one), tag
        if one.get("class") and "scroll" in str(one["class"]).split():  # else a keyboard cannot scroll it
            assert (one["tabindex"], one["role"]) == ("0", "region")
            assert one["aria-label"]
        for name in ("src", "href", "action"):
            assert not re.match(r"(\w+:)?//", one.get(name) or ""), one
    assert [one for one in found.of("script")] == [{"src": "watch.js", "defer": None}]
    assert not found.of("style")
    spoken = [one for _, one in found.tags if one.get("role") == "status" or "aria-live" in one]
    assert [one["id"] for one in spoken] == ["said", "count"]
    return found


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return WrittenRun(tmp_path / "run", clients=6, classes=8, machines=True)


def test_pages_of_every_state_can_be_read_by_everybody(run: WrittenRun, tmp_path: Path) -> None:
    path = run.folder.path
    assert "Waiting for the run" in page_on(tmp_path / "none")
    check(page_on(tmp_path / "none"))
    with claimed(path, ""):
        waiting = page_on(path)
        check(waiting)
        assert "The server waits until enough clients are connected; none is here yet." in waiting
        run.begin()
        for _ in range(3):
            run.round()
        running = page_on(path)
        check(running)
        assert "Round 4 of 10 is under way." in running
        assert "3 of 10 rounds done, about" in running
    assert "no process on this machine works on it" in page_on(path)
    run.folder.write_summary({"status": "failed", "error": "all clients failed"})
    failed = page_on(path)
    check(failed)
    assert "It failed after 3 of 10 rounds. All clients failed." in failed
    assert "left</label>" not in failed
    run.folder.write_summary({"status": "stopped"})
    assert "Somebody stopped it after 3 of 10 rounds" in page_on(path)
    run.folder.write_summary({"status": "finished"})
    run.round(stopped_early="no better for 3 rounds")
    early = page_on(path)
    assert "It ended after round 4 of 10. No better for 3 rounds." in early
    assert "stopped early</b>" in early


def test_why_a_folder_cannot_be_read_stands_where_the_run_would(run: WrittenRun) -> None:
    run.begin()
    run.round()
    file = run.folder.path / "summary.json"
    file.write_text("{")
    shown = page_on(run.folder.path)
    check(shown)
    assert f'<p class="problem">{file}: this is no JSON' in shown
    (run.folder.path / "config.toml").write_text('novelty = "<b>"\n')
    absent = page_on(run.folder.path)
    check(absent)
    assert "<h1>No run can be read</h1>" in absent
    assert 'data-title="cannot be read · fedvision"' in absent
    assert "novelty" in absent
    assert "There is no run in" not in absent


def test_the_page_shows_who_is_here_what_was_learned_and_what_happened(run: WrittenRun) -> None:
    run.begin()
    assert run.register is not None
    run.register.refused(6, "mallory", "SHA256:y", "other classes", by="server")
    run.register.left(2, "it was offline for 50 s")
    for _ in range(3):
        run.round(busy=[4])
    text = page_on(run.folder.path)
    found = check(text)
    assert "5 clients of 7 that came are here, 1 of them late with an answer; 1 left; 1 refused." in text
    for words in ("other classes", "it was offline for 50 s", ">late<", "Balanced accuracy", "class 7"):
        assert words in text
    assert len([one for one in found.of("svg") if one.get("class") == "picture"]) == 7
    events = text[text.index('class="events"') :]
    assert events.index("round 3") < events.index("round 2") < events.index("round 1")
    assert 'id="search"' in text


def test_names_are_text_and_no_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    run = WrittenRun(tmp_path / "run", clients=3, classes=3, machines=True)
    run.names = [evil, "b", "c"]
    run.begin()
    assert run.register is not None
    run.register.refused(3, evil, "SHA256:y", f"{evil} \x1b[0m", by="server")
    run.folder.append_event(1, f"client said {evil}", evil)
    for _ in range(2):
        run.round()
    text = page_on(tmp_path / "run")
    check(text)
    assert "<script>alert" not in text
    followed = FollowedRun(tmp_path / "run")
    followed.poll()
    found = followed.snapshot()
    rows = sections.client_rows.client_rows(found)  # type: ignore[arg-type]
    assert "<script>" not in sections.found_clients(rows, "<script>", across_machines=True)
    assert "<b>" not in sections.found_clients(rows, "<b>", across_machines=True)


@pytest.mark.slow
def test_a_thousand_clients_and_a_hundred_classes_stay_small(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", clients=1000, classes=100, rounds=50, machines=True)
    run.begin()
    for _ in range(5):
        run.round()
    followed = FollowedRun(tmp_path / "run")
    followed.poll()
    before = {
        **sections.written_sections(followed.snapshot()),
        **sections.drawn_sections(followed.snapshot()),
    }
    run.round()
    after: dict[str, str] = {}

    def show() -> None:
        assert followed.poll()
        found = followed.snapshot()
        after.update(sections.written_sections(found) | sections.drawn_sections(found))

    # Some 60,000, and 0.2 s on one core with the drawing; each class of each client would be 100,000.
    assert lines_of(show) < 90_000
    changed = {name: html for name, html in after.items() if html != before[name]}
    assert "spread" not in changed  # the large picture is sent once
    assert sum(len(html.encode()) for html in changed.values()) < 150_000
    assert "And 984 more." in after["clients"]
    assert after["clients"].count("<tr>") == 17
    assert 12 <= after["classes"].count("<tr class=") <= 24  # the rarest ones, and those with least recall
    assert after["classes"].count("<rect") == 100
    check(page_on(tmp_path / "run"))


def test_of_more_classes_than_bars_each_bar_has_as_many(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", clients=2, classes=300)
    run.begin()
    run.round()
    followed = FollowedRun(tmp_path / "run")
    followed.poll()
    found = sections.written_sections(followed.snapshot())["classes"]
    assert found.count("<rect") == 150
    assert 'viewBox="0 0 150 100"' in found
    assert 'aria-label="recall of 300 classes, the most frequent first; the lowest is ' in found


def test_a_simulation_shows_its_clients_by_number(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", clients=8)
    run.begin()
    run.round()
    text = page_on(tmp_path / "run")
    check(text)
    assert "Who takes part" in text
    assert "8 clients, all simulated; 3 have taken part so far." in text
    assert "Curves begin with the second round." in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "less than 10 s"),
        (42, "about 40 s"),
        (94, "about 90 s"),
        (100, "about 2 min"),
        (9 * 60, "about 9 min"),
        (33 * 60, "about 35 min"),
        (95 * 60, "about 1 h 30 min"),
        (3 * 3600, "about 3 h"),
        (26.4 * 3600, "about 26 h"),
    ],
)
def test_a_time_that_is_not_known_exactly_has_no_false_digits(seconds: float, words: str) -> None:
    assert sentences.about(seconds) == words


@pytest.mark.parametrize(
    ("status", "done", "sentence"),
    [
        ("preparing", 0, "The images are read and the model is built; the first round has not begun."),
        ("running", 3, "Round 4 of 10 is under way."),
        ("running", 10, "All 10 rounds are done; the final model is measured and written."),
        ("finished", 10, "All 10 rounds are done."),
    ],
)
def test_how_a_run_stands_is_one_sentence(status: Status, done: int, sentence: str) -> None:
    assert sentences.standing(RunState(name="x", status=status, done=done, rounds=10)) == sentence


def test_a_round_is_one_sentence_for_those_who_hear_the_page(run: WrittenRun) -> None:
    run.begin()
    run.round()
    scores = {"accuracy": 0.75, "balanced_accuracy": 0.5, "tail": 0.25}
    with claimed(run.folder.path, ""):
        run.round(server={"loss": 1.0, "scores": scores})
        followed = FollowedRun(run.folder.path)
        followed.poll()
        found = followed.snapshot()
        assert found is not None
        said = sentences.announcement(found)
        assert said == "Round 2 of 10 is done. Balanced accuracy 50.0%, recall of tail classes 25.0%."
    run.folder.write_summary({"status": "failed", "error": "x is wrong"})
    followed.poll()
    found = followed.snapshot()
    assert found is not None
    assert sentences.announcement(found).startswith("Failed. It failed after 2 of 10 rounds. X is wrong. Bal")
