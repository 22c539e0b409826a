"""How a run stands, as its folder tells: whether it runs or is over, its rounds, the time left, who is here.

Everything is read from the files of the run folder (see ``folder.py``); nothing is written and nothing is
locked, so that whoever looks cannot disturb the process that works in it. Whether there is such a process is
read from Linux's list of locks: taking the folder's lock to find out would make a run that starts at that
moment fail.

A run's life::

    preparing  ->  running  ->  finished       all rounds, or as many as its patience allowed
    waiting    ->           ->  failed         the summary has the error
      (for clients)         ->  stopped        by Ctrl-C or SIGTERM
                            ->  interrupted    no summary, and no process at work: killed, a power cut
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from fedvision.runs.events import BEGAN
from fedvision.runs.folder import RunFolder
from fedvision.runs.member_register import JOINED, REFUSED, Member, MemberRegister

Status = Literal["preparing", "waiting", "running", "finished", "failed", "stopped", "interrupted"]
RECENT = 5
"""The time left is estimated from so many rounds."""
_LOCKS = Path("/proc/locks")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How a run stands."""

    name: str
    """The experiment's name."""
    status: Status
    """Where it is in its life."""
    done: int
    """Rounds that are recorded."""
    rounds: int
    """Rounds in all."""
    stopped_early: str = ""
    """Why the run has ended before its last round though nothing failed; else empty."""
    error: str = ""
    """Why it failed."""
    round_seconds: float | None = None
    """Median seconds of the last rounds; None before the first one."""
    last_round_at: float | None = None
    """When the last round was recorded, seconds since 1970; None before the first one."""
    across_machines: bool = False
    """Whether clients are machines of their own; a simulation has no members."""
    here: tuple[Member, ...] = ()
    """Members that take part now."""
    gone: tuple[Member, ...] = ()
    """Members that left, or whose key was removed."""
    refused: tuple[Member, ...] = ()
    """Clients that may not take part; each has its ``reason``."""
    late: tuple[str, ...] = ()
    """Names, or numbers, of clients that were still at work on an older request as the last round began."""

    @property
    def over(self) -> bool:
        """Whether nothing more comes unless somebody starts it again."""
        return self.status not in ("preparing", "waiting", "running")

    def seconds_left(self, now: float) -> float | None:
        """Return about how long it takes until the last round is done; None where that is unknown.

        Args:
            now: Seconds since 1970. What the round under way has taken is counted, as far as it takes as long
                as those before it.
        """
        if self.status != "running" or self.round_seconds is None or self.last_round_at is None:
            return None
        under_way = min(max(now - self.last_round_at, 0.0), self.round_seconds)
        return max(0.0, self.round_seconds * (self.rounds - self.done) - under_way)


def read_run_state(path: Path) -> RunState:
    """Return how the run in a folder stands.

    Raises:
        RunFolderError: There is no run in the folder, or a file is damaged.
    """
    folder = RunFolder.read(path)
    worked_on = is_worked_on(path)  # before the summary is read, which is written while the lock is held
    return run_state(
        path,
        worked_on=worked_on,
        name=folder.config().name,
        rounds=folder.config().rounds,
        records=folder.rounds(),
        timings=folder.timings(),
        summary=folder.summary(),
        events=folder.events(),
        members=folder.members(),
        invocation=folder.invocation(),
    )


def run_state(
    path: Path,
    *,
    worked_on: bool | None,
    name: str,
    rounds: int,
    records: Sequence[Mapping[str, Any]],
    timings: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    members: MemberRegister,
    invocation: Mapping[str, Any],
) -> RunState:
    """Return how a run stands from what was read of its folder.

    Args:
        path: The folder: for when its last round was recorded.
        worked_on: What ``is_worked_on`` said before the rest was read: a run writes its summary, then leaves.
        name: The experiment's name.
        rounds: Rounds in all.
        records: Those that are recorded.
        timings: Seconds of each, by stage.
        summary: How it ended; empty while it runs.
        events: The lines of ``events.jsonl``.
        members: Who takes part.
        invocation: How it was called.
    """
    last = records[-1] if records else {}
    across_machines = "server" in invocation or bool(members.members)
    totals = [seconds for line in timings[-RECENT:] if (seconds := _total(line)) is not None]
    known = list(members.members.values())
    return RunState(
        name=name,
        status=_status(worked_on, summary, events, across_machines=across_machines),
        done=int(last.get("round", 0)),
        rounds=rounds,
        stopped_early=str(last.get("stopped_early") or ""),
        error=str(summary.get("error") or ""),
        round_seconds=median(totals) if totals else None,
        last_round_at=_modified(path / "rounds.jsonl") if records else None,
        across_machines=across_machines,
        here=tuple(member for member in known if member.status == JOINED),
        gone=tuple(member for member in known if member.status not in (JOINED, REFUSED)),
        refused=tuple(member for member in known if member.status == REFUSED),
        late=tuple(members.names.get(client, str(client)) for client in last.get("busy") or ()),
    )


def is_worked_on(path: Path) -> bool | None:
    """Return whether a process on this machine holds the lock of a run folder; None where nobody can tell.

    A process that this one may not see, in another container or on another machine that shares the disk, is
    not found.
    """
    try:
        held = _LOCKS.read_text(encoding="ascii", errors="replace")
        number = str(path.stat().st_ino)
    except OSError:
        return None
    # "1: FLOCK  ADVISORY  WRITE 8964 fe:00:2199686 0 EOF". Devices are not compared: those of overlays and
    # of btrfs are others here than those that stat knows.
    fields = (line.split() for line in held.splitlines())
    return any("FLOCK" in one and one[-3].rpartition(":")[2] == number for one in fields)


def _status(
    worked_on: bool | None,
    summary: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    *,
    across_machines: bool,
) -> Status:
    ended = summary.get("status")
    if ended in ("finished", "failed", "stopped"):
        return ended  # type: ignore[no-any-return]
    if worked_on is False:
        return "interrupted"
    if not any(event["what"] == BEGAN for event in events):
        return "waiting" if across_machines else "preparing"
    return "running"


def _total(line: Mapping[str, Any]) -> float | None:
    """Return the seconds of a round in all."""
    if "total" in line:
        return float(line["total"])
    stages = [float(value) for stage, value in line.items() if stage != "round"]
    return sum(stages) if stages else None


def _modified(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None
