"""``fedvision runs``, ``status`` and ``stop``: what an operator does with runs from another terminal."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.errors import RunFolderError
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
        f"{state.name} was asked to end {when}; `fedvision status {options.run}` shows whether it has, and "
        "the command that began it goes on with it"
    )
