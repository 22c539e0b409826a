"""What an operator sees of runs: one line each, or one screen of one."""

from __future__ import annotations

import json
import os
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from fedvision.config import ExperimentConfig
from fedvision.errors import RunFolderError
from fedvision.reporting.run_overview import (
    newest_run,
    page_text,
    run_folders,
    run_page,
    run_row,
    runs_text,
)
from fedvision.runs import run_state
from fedvision.runs.events import BEGAN
from fedvision.runs.folder import RunFolder
from fedvision.runs.stop_request import request
from fedvision.runs.waiting import note_waiting

CONFIG = ExperimentConfig.from_dict({"name": "night", "rounds": 4, "data": {"use": "digits"}})
NOON = 1_782_907_200.0
"""2026-07-01 12:00 UTC."""


def record(number: int, clients: list[int], score: float, **further: Any) -> dict[str, Any]:
    scores = {"accuracy": 0.9, "balanced_accuracy": score}
    return {
        "round": number,
        "clients": clients,
        "server": {"scores": scores},
        "bytes": {"down": 1_000_000, "up": 500_000},
        **further,
    }


def age(path: Path, seconds: float) -> None:
    """Make a folder's files so many seconds older than noon."""
    for file in path.rglob("*"):
        os.utime(file, (NOON - seconds, NOON - seconds))


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no table is split."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run across machines of which two rounds are recorded: east left, west was refused, south declines."""
    monkeypatch.setattr(run_state, "is_worked_on", lambda path: True)
    folder = RunFolder.create(tmp_path / "runs/night", CONFIG)
    members = folder.members()
    for client, name in enumerate(["north", "south", "east"]):
        members.joined(client, name, f"SHA256:{name}", node=client, sharing="none")
    members.refused(3, "west", "SHA256:west", "its images are of 8 x 8", by="west")
    folder.append_event(1, BEGAN)
    folder.append_round(record(1, [0, 1, 2], 0.5), {"total": 10.0})
    members.left(2, "")
    members.declined(1, "south", "", "its hours are 20:00-06:00")
    late = {"busy": [0], "refused": [{"client": 1, "stage": "training", "kind": "declined", "reason": "no"}]}
    folder.append_round(record(2, [0], 0.625, **late), {"total": 20.0})
    age(folder.path, 5)
    return folder


def test_one_screen_of_a_run_under_way(deployed: RunFolder) -> None:
    page = run_page(deployed.path, NOON)
    assert json.loads(json.dumps(page)) == page, "plain values"
    lines = page_text(page).splitlines()
    assert lines[:3] == [
        # Two rounds of 15 s each are left, of which 5 s have passed.
        "night: running, 2 of 4 rounds, 30.0 s of rounds, about 25.0 s left",
        "balanced accuracy 62.5%",
        "2 MB sent to clients, 1 MB back",
    ]
    rows = {line.split()[0]: " ".join(line.split()[1:-2]) for line in lines[7:11]}
    assert rows == {
        "north": "here, late round 2",
        "south": "declines round 1",
        "east": "left round 1",
        "west": "refused –",
    }
    assert lines[11:13] == ["south: its hours are 20:00-06:00", "west: its images are of 8 x 8"]
    assert lines[-1] == "round 2: client south (1): declined: no"


def test_for_whom_a_run_waits_is_shown_while_it_is_not_over(deployed: RunFolder) -> None:
    waiting = "waiting: 1 of 2 clients; south was never here"
    note_waiting(deployed.path, waiting)
    assert run_page(deployed.path, NOON)["waiting"] == waiting
    assert page_text(run_page(deployed.path, NOON)).splitlines()[1] == waiting
    note_waiting(deployed.path, "")
    assert run_page(deployed.path, NOON)["waiting"] == ""
    note_waiting(deployed.path, waiting)
    deployed.write_summary({"status": "finished"})
    assert run_page(deployed.path, NOON)["waiting"] == ""


def test_a_request_to_stop_and_an_error_are_shown(
    deployed: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    request(deployed.path, now=False)
    assert page_text(run_page(deployed.path, NOON)).splitlines()[1] == "it was asked to stop"
    deployed.write_summary({"status": "failed", "error": "the disk is full"})
    lines = page_text(run_page(deployed.path, NOON)).splitlines()
    assert lines[:2] == ["night: failed, 2 of 4 rounds, 30.0 s of rounds", "the disk is full"]


def test_runs_are_listed_with_those_of_sweeps(deployed: RunFolder, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("sweep/a", "sweep/b"):
        RunFolder.create(runs / name, CONFIG)
    (runs / "sweep/b/rounds.jsonl").write_text("no JSON\n")
    (runs / "other").mkdir()
    found = run_folders(runs)
    assert [str(path.relative_to(runs)) for path in found] == ["night", "sweep/a", "sweep/b"]
    age(runs / "sweep", 3600)
    assert newest_run(runs) == runs / "night"
    assert newest_run(runs / "sweep/a") == runs / "sweep/a"
    rows = [run_row(path) for path in found]
    assert rows[0] == {
        "run": str(runs / "night"),
        "name": "night",
        "status": "running",
        "done": 2,
        "rounds": 4,
        "score": "balanced_accuracy",
        "value": 0.625,
        "changed": "2026-07-01T11:59:55+00:00",
        "seconds": 30.0,
    }
    assert rows[1]["value"] is None
    lines = runs_text([{**row, "run": row["run"][-7:]} for row in rows], UTC).splitlines()
    assert lines[2].split() == [
        "s/night", "running", "2/4", "balanced", "62.5%", "2026-07-01", "11:59", "30.0", "s"
    ]  # fmt: skip
    assert lines[3].split()[:4] == ["sweep/a", "preparing", "0/4", "–"]
    assert lines[4].startswith("cannot be read: ")
    assert "rounds.jsonl, line 1: this is no JSON" in " ".join(lines[4:])


def test_where_there_is_no_run(tmp_path: Path) -> None:
    assert run_folders(tmp_path) == []
    with pytest.raises(RunFolderError, match="there is no run folder in it"):
        newest_run(tmp_path)
    with pytest.raises(RunFolderError, match="there is no such folder"):
        run_folders(tmp_path / "none")
