"""``fedvision runs``, ``status``, ``stop`` and ``audit``: an operator's view of runs, from any terminal."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.errors import ConfigError, RunError, RunFolderError
from fedvision.formatting import plural, typed
from fedvision.streams import show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_RUNS = Path("runs")


def add(verbs: Verbs) -> None:
    """Add the verbs to the command line."""
    runs = verbs.add_parser("runs", description="list the runs in a folder: state, rounds, score, time")
    runs.add_argument("folder", type=Path, nargs="?", default=_RUNS, metavar="FOLDER", help="default: runs")
    runs.add_argument("--json", action="store_true", help="a JSON object a line")
    runs.set_defaults(call=_runs)

    status = verbs.add_parser("status", description="show how a run stands, also one that is running")
    status.add_argument(
        "run", type=Path, nargs="?", default=_RUNS, metavar="RUN",
        help="run folder, or a folder of runs for the one that was written last (default: runs)",
    )  # fmt: skip
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(call=_status)

    stop = verbs.add_parser("stop", description="end a run after its present round; it can be continued")
    stop.add_argument("run", type=Path, metavar="RUN", help="run folder")
    stop.add_argument("--now", action="store_true", help="give the present round up, as Ctrl-C does")
    stop.set_defaults(call=_stop)

    audit = verbs.add_parser("audit", description="check and print who joined and what was refused")
    audit.add_argument("run", type=Path, metavar="RUN", help="run folder")
    audit.add_argument("--client", dest="of_client", metavar="NAME", help="only lines about this client")
    audit.add_argument(
        "--noted", metavar="DIGEST", help="check that the log still holds a line noted earlier"
    )
    audit.add_argument("--json", action="store_true", help="the lines as they are")
    audit.set_defaults(call=_audit)


def _runs(options: argparse.Namespace) -> None:
    from fedvision.files import json_line
    from fedvision.reporting.run_overview import run_folders, run_row, runs_text

    rows = [run_row(path) for path in run_folders(options.folder)]
    if options.json:
        show("".join(map(json_line, rows)).rstrip("\n"))
    elif rows:
        show(runs_text(rows))
    else:
        show(f"{options.folder}: there is no run in it")


def _status(options: argparse.Namespace) -> None:
    from fedvision.files import json_page
    from fedvision.reporting.run_overview import newest_run, page_text, run_page

    page = run_page(newest_run(options.run), time.time())
    show(json_page(page).rstrip("\n") if options.json else page_text(page))


def _stop(options: argparse.Namespace) -> None:
    from fedvision.runs.run_state import is_worked_on, read_run_state
    from fedvision.runs.stop_request import request

    state = read_run_state(options.run)
    if state.over or is_worked_on(options.run) is False:
        raise RunFolderError(
            f"{options.run}: there is nothing to stop: this run is {state.status}, {state.done} of "
            f"{state.rounds} rounds"
        )
    request(options.run, now=options.now)
    when = "at once" if options.now or state.status != "running" else f"after round {state.done + 1}"
    show(
        f"{state.name} was asked to end {when}; `fedvision status {typed(options.run)}` shows whether it "
        "has, and the command that began it goes on with it"
    )


def _audit(options: argparse.Namespace) -> None:
    from fedvision.files import json_line
    from fedvision.reporting.audit_text import audit_line
    from fedvision.runs.audit_log import FILE, read_audit
    from fedvision.runs.folder import RunFolder

    file = RunFolder.read(options.run).path / FILE
    found = read_audit(file)
    lines = [line for line in found.lines if options.of_client in (None, line["client"])]
    text = [json_line(line).rstrip("\n") if options.json else audit_line(line) for line in lines]
    if text:
        show("\n".join(text))
    if found.broken:
        raise RunError(
            f"{file}: line {found.broken} does not follow from the one before it: a line was changed, "
            "removed or put in; nothing from there on can be relied upon"
        )
    if options.noted is not None:
        check_noted(file, options.noted, found.digests)
    if not options.json:
        last = found.digests[-1] if found.digests else "none"
        show(f"{plural(len(found.digests), 'line')}, each follows from the one before it; the last is {last}")


def check_noted(file: Path, noted: str, digests: Sequence[str]) -> None:
    """Check that a log still holds the line of a digest.

    Raises:
        RunError: It does not.
        ConfigError: The text is no such digest.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", noted):
        raise ConfigError("--noted: name the 64 digits that `fedvision audit` printed")
    if noted not in digests:
        raise RunError(f"{file}: the line that was noted is not in it: the log was cut short or written anew")
