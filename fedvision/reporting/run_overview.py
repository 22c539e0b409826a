"""What an operator wants to see of runs without opening a report: one line a run, or one screen of one run.

Everything is read from the run folders; nothing is written, and no process is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedvision.errors import RunFolderError
from fedvision.formatting import duration, percent, plural, score_name, size
from fedvision.reporting.text_table import TextTable, plain_text
from fedvision.runs.events import all_events
from fedvision.runs.folder import RunFolder
from fedvision.runs.member_register import DECLINED, Member
from fedvision.runs.run_state import RunState, read_run_state
from fedvision.runs.stop_request import FILE as STOP
from fedvision.runs.waiting import read_waiting

Record = dict[str, Any]
EVENTS = 8
"""The last events that a screen shows."""
_SCORES = {"balanced_accuracy": "balanced", "mean_ap": "mean AP", "accuracy": "accuracy"}
"""A run is listed with the first of these that was measured; their names in a narrow column."""


def run_folders(path: Path) -> list[Path]:
    """Return the run folders in a folder and in the folders of sweeps in it, by path.

    Raises:
        RunFolderError: There is no such folder, or it cannot be read.
    """
    if (path / "config.toml").is_file():
        return [path]
    try:
        found = [file.parent for pattern in ("*", "*/*") for file in path.glob(f"{pattern}/config.toml")]
        if not path.is_dir():
            raise RunFolderError(f"{path}: there is no such folder; name one that holds run folders")
    except OSError as error:
        raise RunFolderError(f"{path}: it cannot be read: {error.strerror}") from error
    return sorted(one for one in found if one.name != "best")


def newest_run(path: Path) -> Path:
    """Return the run folder that was written last, of those in a folder.

    Raises:
        RunFolderError: There is none.
    """
    found = run_folders(path)
    if not found:
        raise RunFolderError(f"{path}: there is no run folder in it; name one that a run has written")
    return max(found, key=_changed)


def run_row(path: Path) -> Record:
    """Return a run in plain values; of a folder that cannot be read, why under ``problem``."""
    try:
        state, folder = read_run_state(path), RunFolder.read(path)
        score, value = _score(folder.rounds())
        timings = folder.timings()
    except RunFolderError as error:
        return {"run": str(path), "problem": str(error)}
    return {
        "run": str(path),
        "name": state.name,
        "status": _status(state),
        "done": state.done,
        "rounds": state.rounds,
        "score": score,
        "value": value,
        "changed": _utc(_changed(path)),
        "seconds": _seconds(timings),
    }


def runs_text(rows: Sequence[Mapping[str, Any]], zone: Any = None) -> str:
    """Return rows as a table.

    Args:
        rows: Of ``run_row``.
        zone: Time zone of the times; None is this machine's.
    """
    table = TextTable("run", "state", "rounds", "score", "changed", "took")
    problems = []
    for row in rows:
        if "problem" in row:
            problems.append(f"cannot be read: {row['problem']}")
            continue
        value = "–" if row["value"] is None else f"{_SCORES[row['score']]} {percent(row['value'])}"
        when = datetime.fromisoformat(row["changed"]).astimezone(zone)
        rounds = f"{row['done']}/{row['rounds']}"
        took = duration(row["seconds"]) if row["seconds"] else "–"
        table.add(row["run"], row["status"], rounds, value, f"{when:%Y-%m-%d %H:%M}", took)
    shown = [table] if len(problems) < len(rows) else []
    return plain_text(*shown, *problems)


def run_page(path: Path, now: float) -> Record:
    """Return how a run stands, in plain values.

    Args:
        path: The run folder.
        now: Seconds since 1970.

    Raises:
        RunFolderError: There is no run in it, or a file is damaged.
    """
    state, folder = read_run_state(path), RunFolder.read(path)
    records, members = folder.rounds(), folder.members()
    buffered = folder.config().round.buffer > 0
    events = all_events(records, folder.events(), members.names, buffered=buffered)
    since = {line["client"]: line["time"] for line in members.lines if line["client"] is not None}
    traffic = [record.get("bytes") or {} for record in records]
    score, value = _score(records)
    return {
        "run": str(path),
        "name": state.name,
        "status": _status(state),
        "done": state.done,
        "rounds": state.rounds,
        "waiting": "" if state.over else read_waiting(path),
        "error": state.error or state.stopped_early,
        "stop_requested": not state.over and (path / STOP).exists(),
        "seconds_left": state.seconds_left(now),
        "round_seconds": state.round_seconds,
        "seconds": _seconds(folder.timings()),
        "score": score,
        "value": value,
        "clients": len(records[-1].get("clients") or ()) if records else 0,
        "members": [_member(one, records, since) for one in members.members.values()],
        "late": list(state.late),
        "bytes": {way: sum(int(one.get(way, 0)) for one in traffic) for way in ("down", "up")},
        "events": [event._asdict() for event in events[-EVENTS:]],
    }


def page_text(page: Mapping[str, Any]) -> str:
    """Return a page of ``run_page`` as one screen."""
    where = f"{page['done']} of {plural(page['rounds'], 'round')}"
    lines = [f"{page['name']}: {page['status']}, {where}{_ahead(page)}"]
    if page["stop_requested"]:
        lines.append("it was asked to stop")
    if page["waiting"]:
        lines.append(page["waiting"])
    if page["error"]:
        lines.append(page["error"])
    if page["value"] is not None:
        lines.append(f"{score_name(page['score'])} {percent(page['value'])}")
    traffic = page["bytes"]
    lines.append(f"{size(traffic['down'])} sent to clients, {size(traffic['up'])} back")
    parts: list[str | TextTable] = list(lines)
    if page["members"]:
        table = TextTable("client", "state", "last answer", "since (UTC)")
        for one in page["members"]:
            last = f"round {one['last_round']}" if one["last_round"] else "–"
            table.add(one["name"], _state_of(one, page["late"]), last, one["since"][:19].replace("T", " "))
        reasons = [f"{one['name']}: {one['reason']}" for one in page["members"] if one["reason"]]
        parts += ["", table, *reasons]
    else:
        parts.append(f"{plural(page['clients'], 'client')} in the last round")
    if page["events"]:
        parts.append("")
    for event in page["events"]:
        client = f"client {event['client']}: " if event["client"] else ""
        parts.append(f"round {event['round']}: {client}{event['what']}")
    return plain_text(*parts)


def _ahead(page: Mapping[str, Any]) -> str:
    took = f", {duration(page['seconds'])} of rounds" if page["seconds"] else ""
    left = page["seconds_left"]
    return took if left is None else f"{took}, about {duration(left)} left"


def _state_of(member: Mapping[str, Any], late: Sequence[str]) -> str:
    text = "here" if member["status"] == "joined" else str(member["status"])
    return f"{text}, late" if member["name"] in late else text


def _member(member: Member, records: Sequence[Record], since: Mapping[int, str]) -> Record:
    rounds = [record["round"] for record in records if member.client in (record.get("clients") or ())]
    return {
        "client": member.client,
        "name": member.name,
        "status": "declines" if member.status == DECLINED else member.status,
        "reason": member.reason,
        "key": member.key,
        "last_round": rounds[-1] if rounds else None,
        "since": since[member.client],
    }


def _status(state: RunState) -> str:
    return "stopped early" if state.stopped_early and state.status == "finished" else state.status


def _score(records: Sequence[Record]) -> tuple[str, float | None]:
    """Return the name and value of the score that was measured last; of the server's images first."""
    for record in reversed(records):
        for view in ("server", "local"):
            scores = (record.get(view) or {}).get("scores") or {}
            for name in _SCORES:
                if scores.get(name) is not None:
                    return name, float(scores[name])
    return "", None


def _seconds(timings: Sequence[Record]) -> float:
    return sum(float(line.get("total") or 0.0) for line in timings)


def _changed(path: Path) -> float:
    """Return when a run's journal was written last, seconds since 1970."""
    names = ("summary.json", "rounds.jsonl", "events.jsonl", "members.jsonl", "config.toml")
    return max(((path / name).stat().st_mtime for name in names if (path / name).exists()), default=0.0)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
