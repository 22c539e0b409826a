"""How a run stands, as its folder tells: from the first file to the summary, and after a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedvision.config import ExperimentConfig
from fedvision.errors import RunFolderError
from fedvision.runs import run_state
from fedvision.runs.events import BEGAN
from fedvision.runs.folder import RunFolder
from fedvision.runs.folder_lock import claimed
from fedvision.runs.run_state import is_worked_on, read_run_state

CONFIG = ExperimentConfig.from_dict({"name": "night", "rounds": 10, "data": {"use": "digits"}})
linux = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists the locks of others")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG)


def record(number: int, **further: Any) -> dict[str, Any]:
    return {"round": number, "clients": [0, 1], **further}


@linux
def test_a_run_is_seen_through_its_life(folder: RunFolder) -> None:
    def status() -> str:
        return read_run_state(folder.path).status

    assert status() == "interrupted"  # nobody is at work
    with claimed(folder.path, ""):
        assert status() == "preparing"
        folder.append_event(1, BEGAN)
        assert status() == "running"
        folder.append_round(record(1), {"total": 2.0})
        assert status() == "running"
    assert status() == "interrupted"
    for ended in ("failed", "stopped", "finished"):
        folder.write_summary({"status": ended, "error": "the disk is full"})
        assert status() == ended
    assert read_run_state(folder.path).error == "the disk is full"


@linux
def test_a_server_waits_for_clients_until_its_run_began(folder: RunFolder) -> None:
    folder.note_invocation({"server": ["server"]})
    with claimed(folder.path, ""):
        assert read_run_state(folder.path).status == "waiting"
        folder.append_event(1, BEGAN)
        assert read_run_state(folder.path).status == "running"


def test_the_time_left_is_of_recent_rounds_and_counts_the_one_under_way(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "is_worked_on", lambda path: True)
    folder.append_event(1, BEGAN)
    assert read_run_state(folder.path).seconds_left(0.0) is None
    for number, seconds in enumerate([100.0, 1.0, 2.0, 3.0, 50.0, 4.0], start=1):
        folder.append_round(record(number), {"train": seconds, "total": seconds})
    state = read_run_state(folder.path)
    assert (state.done, state.rounds, state.round_seconds) == (6, 10, 3.0)  # of 1, 2, 3, 50 and 4
    then = state.last_round_at
    assert then is not None
    assert state.seconds_left(then) == 12.0
    assert state.seconds_left(then + 2.0) == pytest.approx(10.0)
    assert state.seconds_left(then + 100.0) == 9.0  # a round that takes long takes nothing of the others
    folder.write_summary({"status": "finished"})
    assert read_run_state(folder.path).seconds_left(then) is None


def test_members_stand_where_the_register_has_them_last(folder: RunFolder) -> None:
    register = folder.members()
    for client, name in enumerate(["north", "south", "west", "east"]):
        register.joined(client, name, "SHA256:x", node=client, sharing="counts")
    register.left(1, "it was offline for 50 s")
    register.revoked(2)
    register.refused(4, "mallory", "SHA256:y", "other classes", by="server")
    folder.append_round(record(1, busy=[3]), {"total": 1.0})
    state = read_run_state(folder.path)
    assert state.across_machines
    assert [one.name for one in state.here] == ["north", "east"]
    assert [(one.name, one.status) for one in state.gone] == [("south", "left"), ("west", "revoked")]
    assert [(one.name, one.reason) for one in state.refused] == [("mallory", "other classes")]
    assert state.late == ("east",)


def test_a_run_whose_patience_was_over_says_why(folder: RunFolder) -> None:
    folder.append_round(record(4, stopped_early="no better for 3 rounds"), {"total": 1.0})
    folder.write_summary({"status": "finished"})
    state = read_run_state(folder.path)
    assert (state.status, state.stopped_early, state.over) == ("finished", "no better for 3 rounds", True)


@linux
def test_the_lock_of_another_process_is_seen_and_not_taken(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from fedvision.runs.folder_lock import claimed\n"
        "with claimed(Path(sys.argv[1]), ''): print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin
    assert other.stdout
    assert other.stdout.readline() == b"held\n"
    assert is_worked_on(tmp_path)
    other.communicate(b"\n")
    assert is_worked_on(tmp_path) is False
    with claimed(tmp_path, ""):  # nothing of the looking stays
        pass


def test_where_nobody_lists_locks_an_unfinished_run_counts_as_running(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_state, "_LOCKS", tmp_path / "none")
    folder.append_event(1, BEGAN)
    assert is_worked_on(folder.path) is None
    assert read_run_state(folder.path).status == "running"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run folder"):
        read_run_state(tmp_path)


@pytest.mark.slow
def test_reading_a_run_folder_needs_no_torch() -> None:
    """A page that watches a run shall be up at once and small beside it."""
    script = (
        "import sys, fedvision.runs.run_state, fedvision.reporting.html\n"
        "print(sorted({'torch', 'flwr', 'ray', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
