"""A run folder that is followed: what a page on it shows, kept up to date with what is new in its files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedvision.config import ExperimentConfig
from fedvision.errors import MALFORMED, RunFolderError
from fedvision.files import PART, read_json
from fedvision.reporting.participation import Participant
from fedvision.reporting.run_data import RunData, run_data
from fedvision.runs.events import BEGAN, Event
from fedvision.runs.folder import RunFolder
from fedvision.runs.member_register import FILE, MemberRegister
from fedvision.runs.run_state import RunState, is_worked_on, run_state
from fedvision.watching.followed_files import FollowedFile, FollowedLines, FollowedTable
from fedvision.watching.round_tallies import ClientTally, RoundTallies, thinned

CURVE_POINTS = 150
"""A curve of more rounds than about twice as many is drawn through some of them."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run as it stood at one moment."""

    facts: RunData
    """Its facts as reports have them; of many rounds some, with the last one."""
    state: RunState
    """How it stands."""
    clients: dict[int, ClientTally]
    """What the rounds tell of each client that was ever selected, or is a member."""
    tallies: RoundTallies
    """Sums over all rounds."""
    events: list[Event]
    """What happened, the newest first."""
    more_events: int
    """Older ones than these."""
    sent: dict[str, int]
    """Bytes of all rounds, as ``RunData.sent`` has them."""
    seconds: dict[str, float]
    """Seconds of all rounds by stage, as ``RunData.seconds`` has them."""


def check_folder(path: Path) -> None:
    """Refuse a path that no run will ever write to: a typing error is better said than waited for.

    Raises:
        RunFolderError: Its parent is missing, or there is something that is no run.
    """
    if not path.exists():
        if not path.absolute().parent.is_dir():
            raise RunFolderError(
                f"{path}: there is no such folder, nor its parent {path.parent}; name the folder of a run "
                "(--out of the run, or runs/NAME)"
            )
        return
    if not path.is_dir():
        raise RunFolderError(f"{path}: this is a file; name the folder of a run")
    try:
        found = sorted(one.name for one in path.iterdir() if not one.name.endswith(PART))
    except OSError as error:
        raise RunFolderError(f"{path}: it cannot be read: {error.strerror}; restore access to it") from error
    if not found or (path / "config.toml").exists():
        return
    if runs := [name for name in found if (path / name / "config.toml").is_file()]:
        raise RunFolderError(f"{path}: it holds {len(runs)} runs; name one of them, such as {path / runs[0]}")
    raise RunFolderError(f"{path}: it has no config.toml, so it is no run folder; name the folder of a run")


class FollowedRun:
    """A run folder, read as it changes; nothing in it is written or locked.

    Args:
        path: The folder; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._wrong = ""
        self._config: ExperimentConfig | None = None
        self._config_text = ""
        self._config_file = FollowedFile(path / "config.toml")
        self._tables = {
            name: FollowedTable(path / f"{name}.json")
            for name in ("split", "summary", "invocation", "environment")
        }
        self._tallies = RoundTallies()
        self._timings: list[dict[str, Any]] = []
        self._notices: list[dict[str, Any]] = []
        self._members_file = FollowedFile(path / FILE)
        self._members = MemberRegister(Path(os.devnull))  # nobody is known yet
        self._rounds = FollowedLines(path / "rounds.jsonl", self._take_round, self._forget_rounds)
        self._lines = [
            FollowedLines(path / "timings.jsonl", self._timings.append, self._timings.clear),
            FollowedLines(path / "events.jsonl", self._notices.append, self._notices.clear),
        ]
        self._worked_on: bool | None = None

    @property
    def problem(self) -> str:
        """What in the folder cannot be read now; empty where all can."""
        followed = [*self._tables.values(), self._members_file, self._rounds, *self._lines]
        return self._wrong or next((one.damage for one in followed if one.damage), "")

    def poll(self) -> bool:
        """Read what is new, and return whether anything that a page shows has changed."""
        worked_on = is_worked_on(self.path)  # before the summary, which is written while the lock is held
        changed, self._worked_on = worked_on != self._worked_on, worked_on
        if self._config_file.changed():
            self._read_config()
            changed = True
        if self._config is None:
            return changed
        if self._members_file.changed():
            self._read_members()
            changed = True
        found = [one.poll() for one in self._tables.values()]
        return any([changed, *found, *[one.poll() for one in (self._rounds, *self._lines)]])

    def snapshot(self) -> Snapshot | None:
        """Return the run as it stands; None where there is none in the folder yet."""
        if self._config is None:
            return None
        records = self._tallies.records
        numbers = {*self._tallies.clients, *self._members.members}
        clients = {number: self._tallies.clients.get(number) or ClientTally() for number in sorted(numbers)}
        read: dict[str, Any] = {name: followed.table for name, followed in self._tables.items()}
        whole = self._facts(records, read)
        notices = [
            Event(line["round"], str(line.get("client") or ""), line["what"])
            for line in self._notices
            if line["what"] != BEGAN
        ]
        events = sorted([*notices, *self._tallies.events], key=lambda event: event.round, reverse=True)
        return Snapshot(
            facts=replace(whole, rounds=thinned(records, CURVE_POINTS)),
            state=run_state(
                self.path,
                worked_on=self._worked_on,
                name=self._config.name,
                rounds=self._config.rounds,
                records=[self._tallies.last] if self._tallies.last else [],
                timings=self._timings,
                summary=read["summary"],
                events=self._notices,
                members=self._members,
                invocation=read["invocation"],
            ),
            clients=clients,
            tallies=self._tallies,
            events=events,
            more_events=self._tallies.forgotten,
            sent=whole.sent(),
            seconds=whole.seconds(),
        )

    def _facts(self, records: list[dict[str, Any]], read: dict[str, Any]) -> RunData:
        assert self._config
        return run_data(
            self.path,
            config=self._config,
            config_text=self._config_text,
            rounds=records,
            timings=self._timings,
            names=self._members.names,
            participants=[
                self._participant(member.client, self._tallies.clients.get(member.client) or ClientTally())
                for member in self._members.members.values()
            ],
            events=[],
            **read,
        )

    def _participant(self, client: int, tally: ClientTally) -> Participant:
        """Return a member as one that takes part unless it was refused: it may yet answer."""
        member = self._members.members[client]
        return Participant(member=member, used=tally.used, failed=0, reason=member.reason or tally.reason)

    def _take_round(self, record: dict[str, Any]) -> None:
        self._tallies.take(record)

    def _forget_rounds(self) -> None:
        self._tallies = self._new_tallies()

    def _new_tallies(self) -> RoundTallies:
        assert self._config
        return RoundTallies(names=self._members.names, buffered=self._config.round.buffer > 0)

    def _read_members(self) -> None:
        """Read the register; a damaged one counts as it was."""
        self._members_file.damage = ""
        try:
            self._members = MemberRegister(self._members_file.path)
        except RunFolderError as error:
            self._members_file.damage = str(error)
        except MALFORMED as error:
            self._members_file.damage = f"{self._members_file.path}: it cannot be read: {error}"
        self._tallies.names = self._members.names

    def _read_config(self) -> None:
        """Read the experiment, where there is one that this version understands."""
        self._config, self._wrong = None, ""
        if not self._config_file.path.exists():
            return
        try:
            folder = RunFolder.read(self.path)
            self._config, self._config_text = folder.config(), folder.config_text()
        except (RunFolderError, OSError) as error:
            self._wrong = self._of_another_version() or str(error)
        else:
            self._tallies.buffered = self._config.round.buffer > 0

    def _of_another_version(self) -> str:
        """Return a sentence where another version wrote the folder; else nothing."""
        from fedvision import __version__

        try:
            wrote = read_json(self.path / "environment.json").get("fedvision")
        except RunFolderError:
            return ""
        if wrote in (None, __version__):
            return ""
        return (
            f"{self.path}: fedvision {wrote} wrote it, and this is {__version__}, which does not understand "
            f"its experiment; watch it with {wrote}"
        )
