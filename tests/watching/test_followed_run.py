"""A run folder that is followed from its first file to its end, with resumes, many clients and damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedvision.errors import RunFolderError
from fedvision.reporting.curve_pictures import curve_pictures
from fedvision.reporting.run_data import read_facts
from fedvision.runs.folder_lock import claimed
from fedvision.runs.member_register import FILE as MEMBERS
from fedvision.watching.client_rows import client_rows, matching, noteworthy
from fedvision.watching.followed_run import FollowedRun, Snapshot, check_folder
from fedvision.watching.round_tallies import EVENTS, RoundTallies, thinned
from tests.watching.sample import WrittenRun


def now(run: FollowedRun) -> Snapshot:
    run.poll()
    found = run.snapshot()
    assert found is not None
    return found


def test_the_page_has_the_facts_of_the_report(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run")
    followed = FollowedRun(tmp_path / "run")
    run.begin()
    for _ in range(5):
        run.round()
        followed.poll()
    found, report = now(followed), read_facts(run.folder)
    assert found.state.done == 5
    for key in ("server", "local"):
        mine, theirs = found.facts.measurement(key), report.measurement(key)
        assert mine is not None
        assert theirs is not None
        assert (mine.scores, mine.worst, mine.loss) == (theirs.scores, theirs.worst, theirs.loss)
        assert found.facts.class_facts(mine) == report.class_facts(theirs)
    assert curve_pictures(found.facts) == curve_pictures(report)
    assert (found.sent, found.seconds) == (report.sent(), report.seconds())
    assert [event.what for event in found.events] == [event.what for event in reversed(report.events)]
    assert sum(one.used for one in found.clients.values()) == sum(len(r["clients"]) for r in report.rounds)


def test_what_clients_measured_while_they_trained_is_of_the_round_before(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run")
    run.begin()
    for number in range(1, 4):
        local = run.record(number)["local"]
        run.round(server=None, local=None, received={**local, "round": number - 1} if number > 1 else None)
    found = now(FollowedRun(tmp_path / "run"))
    measured = found.facts.measurement("local")
    assert measured is not None
    assert measured.round == 2
    assert [row.tally.score is not None for row in client_rows(found)].count(True) > 0


def test_a_resumed_run_is_followed_back(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run")
    run.begin()
    for _ in range(4):
        run.round()
    followed = FollowedRun(tmp_path / "run")
    before = now(followed)
    rounds, timings = (tmp_path / "run" / name for name in ("rounds.jsonl", "timings.jsonl"))
    for file in (rounds, timings):
        kept = b"".join(file.read_bytes().splitlines(keepends=True)[:2])
        os.truncate(file, len(kept))
    after = now(followed)
    assert (before.state.done, after.state.done) == (4, 2)
    fresh = now(FollowedRun(tmp_path / "run"))
    assert after.clients == fresh.clients
    assert after.events == fresh.events
    assert after.sent == fresh.sent
    assert after.seconds["total"] == 4.0


def test_a_folder_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    followed = FollowedRun(tmp_path / "run")
    assert not followed.poll()
    assert followed.snapshot() is None
    with claimed(tmp_path / "run", ""):
        followed.poll()
        assert followed.snapshot() is None  # a run makes its folder before its first file
        run = WrittenRun(tmp_path / "run")
        assert followed.poll()
        assert now(followed).state.status == "preparing"
        run.begin()
        assert now(followed).state.status == "running"


def test_damage_is_said_and_gone_when_it_is_mended(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run")
    run.begin()
    run.round()
    followed = FollowedRun(tmp_path / "run")
    summary = tmp_path / "run/summary.json"
    summary.write_text("{")
    assert followed.poll()
    assert "summary.json" in followed.problem
    assert not followed.poll()  # the same problem is no news
    summary.write_text('{"status": "finished"}')
    assert now(followed).state.status == "finished"
    assert followed.problem == ""


def test_a_line_of_another_program_is_said(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run")
    run.begin()
    (tmp_path / "run/rounds.jsonl").write_text('{"epoch": 1}\n')
    followed = FollowedRun(tmp_path / "run")
    followed.poll()
    assert "rounds.jsonl, line 1" in followed.problem


def test_a_folder_of_another_version_is_named(tmp_path: Path) -> None:
    WrittenRun(tmp_path / "run")
    (tmp_path / "run/config.toml").write_text('name = "x"\nrounds = 3\nnovelty = 1\n')
    (tmp_path / "run/environment.json").write_text('{"fedvision": "9.0.0"}')
    followed = FollowedRun(tmp_path / "run")
    followed.poll()
    assert "fedvision 9.0.0 wrote it" in followed.problem


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing/run", "nor its parent"),
        ("file", "this is a file"),
        ("photos", "no config.toml"),
        ("sweep", "it holds 1 runs; name one of them, such as .*sweep/a"),
    ],
)
def test_what_will_never_be_a_run_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("")
    (tmp_path / "sweep").mkdir()
    WrittenRun(tmp_path / "sweep/a")
    with pytest.raises(RunFolderError, match=expected):
        check_folder(tmp_path / name)
    check_folder(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
    check_folder(tmp_path / "sweep/a")


def test_members_of_a_large_run_are_sorted_by_trouble_and_found_by_name(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", clients=60, machines=True)
    run.begin()
    assert run.register is not None
    run.register.refused(60, "mallory", "SHA256:y", "other classes", by="server")
    run.register.left(7, "it was offline")
    run.round(busy=[9])
    rows = client_rows(now(FollowedRun(tmp_path / "run")))
    assert [(row.name, row.status) for row in noteworthy(rows)[:3]] == [
        ("mallory", "refused"),
        ("site-0007", "left"),
        ("site-0009", "late"),
    ]
    assert len(noteworthy(rows)) < len(rows) == 61
    assert rows[3].images == int(run.counts[3].sum())
    assert [row.name for row in matching(rows, "MALL")] == ["mallory"]
    assert [row.name for row in matching(rows, "site-001")] == [f"site-001{n}" for n in range(10)]
    assert matching(rows, "nobody") == []


def test_curves_of_long_runs_keep_what_was_measured() -> None:
    records = [{"round": n, "server": {"loss": 1.0} if n % 10 == 0 else None} for n in range(1, 5001)]
    kept = thinned(records, 100)
    assert 100 <= len(kept) <= 200
    assert kept[0]["round"] == 1
    assert kept[-1]["round"] == 5000
    assert sum(bool(record["server"]) for record in kept) >= 100
    assert [record["round"] for record in kept] == sorted({record["round"] for record in kept})
    assert thinned(records[:50], 100) == records[:50]


def test_memory_does_not_grow_with_clients_times_rounds(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", clients=200, classes=20)
    tallies = RoundTallies()
    for number in range(1, 30):
        failed = [
            {"client": one, "stage": "training", "kind": "failed", "reason": "gone"} for one in range(100)
        ]
        tallies.take(run.record(number, refused=failed, clients=[150]))
    kept = tallies.records
    assert [("confusion" in record["server"]) for record in kept] == [False] * 28 + [True]
    assert {len(record["local"]["accuracy"]) for record in kept} == {3}
    assert not any("client_loss" in record or "clients" in record for record in kept)
    assert len(tallies.events) == EVENTS
    assert tallies.forgotten == 29 * 100 - EVENTS
    assert (tallies.clients[5].failed, tallies.clients[150].used) == (29, 29)


def test_a_damaged_register_of_members_is_said_and_the_run_is_shown(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", machines=True)
    run.begin()
    followed = FollowedRun(tmp_path / "run")
    assert len(now(followed).state.here) == 4
    file = tmp_path / "run" / MEMBERS
    good = file.read_text()
    file.write_text(good + '{"what": "joined"}\n')
    assert len(now(followed).state.here) == 4, "it counts as it was"
    assert followed.problem.startswith(f"{file}: it cannot be read: ")
    file.write_text("no JSON\n" + good)
    followed.poll()
    assert followed.problem.startswith(f"{file}, line 1: this is no JSON")
    file.write_text(good)
    followed.poll()
    assert followed.problem == ""


def test_an_experiment_that_is_damaged_is_said_as_it_is(tmp_path: Path) -> None:
    """Nothing says that another version wrote it, or that cannot be read either."""
    WrittenRun(tmp_path / "run")
    (tmp_path / "run/config.toml").write_text("novelty = 1\n")
    for environment in ("{}", "{"):
        (tmp_path / "run/environment.json").write_text(environment)
        followed = FollowedRun(tmp_path / "run")
        followed.poll()
        assert followed.snapshot() is None
        assert "novelty" in followed.problem
    (tmp_path / "run/config.toml").unlink()
    followed.poll()
    assert followed.snapshot() is None
    assert "novelty" not in followed.problem
