"""``fedvision queue``: experiments that a server runs one after the other, and its loop over them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision import registry
from fedvision.errors import ConfigError
from fedvision.formatting import plural, typed
from fedvision.streams import complain, show

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig
    from fedvision.deployment.server.experiment_queue import ExperimentQueue, QueueEntry, Status
    from fedvision.deployment.server.superlink_process import SuperlinkProcess

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

MODULES = "FEDVISION_MODULES"
"""The folder of an experiment's plug-ins, for a process whose file of it lies elsewhere."""
_LOOK_S = 1.0
_ENDED: dict[int, Status] = {0: "done", 130: "stopped"}
"""How an experiment ended, by its process's exit code; others are failures."""


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    queue = verbs.add_parser("queue", description="experiments that `fedvision server --queue` runs in turn")
    actions = queue.add_subparsers(required=True, metavar="ACTION", dest="action", help="one of these:")
    added = actions.add_parser("add", help="put experiments at the end; they are checked now")
    _folder(added)
    added.add_argument("items", nargs="+", type=Path, metavar="EXPERIMENT", help="TOML file")
    added.add_argument(
        "--wait-for", type=int, default=1, metavar="N", help="clients to begin with (default: 1)"
    )
    added.add_argument("--out", type=Path, help="run folder, of one experiment (default: a new runs/NAME)")
    added.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="training.lr=0.1"
    )
    added.set_defaults(call=_add)
    listed = actions.add_parser("list", help="show what waits, runs and is done")
    _folder(listed)
    listed.add_argument("--json", action="store_true", help="a JSON object a line")
    listed.set_defaults(call=_list)
    removed = actions.add_parser("remove", help="take experiments out; their run folders stay")
    _folder(removed)
    removed.add_argument("items", nargs="+", type=int, metavar="NUMBER", help="as `list` shows them")
    removed.set_defaults(call=_remove)


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="QUEUE", help="the queue's folder")


def _add(options: argparse.Namespace) -> None:
    if options.out is not None and len(options.items) > 1:
        raise ConfigError("--out: it is the folder of one run; add the experiments one by one")
    from fedvision.deployment.server.experiment_queue import ExperimentQueue, free_folder

    queue = ExperimentQueue(options.folder)
    coming = {entry.out for entry in queue.entries() if entry.status in ("waiting", "running")}
    checked = []
    for item in options.items:
        entry, teacher = _checked(item, options, coming)
        coming.add(entry.out or str(free_folder(queue, entry.name, Path(entry.folder) / "runs")))
        checked.append((entry, teacher))
    for entry, teacher in checked:
        added = queue.add(entry)
        later = f"; {teacher} is read when its turn comes" if teacher else ""
        show(f"{added.number}  {added.name} waits; its run folder will be {added.out}{later}")


def _remove(options: argparse.Namespace) -> None:
    from fedvision.deployment.server.experiment_queue import ExperimentQueue

    for number in options.items:
        removed = ExperimentQueue(options.folder).remove(number)
        show(f"{removed.number}  {removed.name} is removed")


def _list(options: argparse.Namespace) -> None:
    from fedvision.deployment.server.experiment_queue import ExperimentQueue, as_json

    entries = ExperimentQueue(options.folder).entries()
    if options.json:
        show("\n".join(map(as_json, entries)))
        return
    lines = [f"{one.number:>4}  {one.status:<8}  {one.name}  {one.out}" for one in entries]
    show("\n".join(lines or [f"{options.folder}: no experiment was added"]))


def _checked(file: Path, options: argparse.Namespace, coming: Collection[str]) -> tuple[QueueEntry, str]:
    """Return an experiment for the queue, built once as the server will build it: what is wrong shows now.

    Args:
        file: The experiment's.
        options: Of the command.
        coming: Run folders that the queue is to write before.

    Returns:
        The experiment, and the run that teaches it where that is one of these; otherwise an empty text.

    Raises:
        ConfigError: It cannot be run.
        RunFolderError: Its run folder holds something else.
    """
    if options.wait_for < 1:
        raise ConfigError(f"--wait-for must be >= 1, not {options.wait_for}")
    from fedvision.config import ExperimentConfig

    registry.allow_folder(file.parent)
    config = ExperimentConfig.load(file, options.overrides)
    from fedvision.deployment.server.experiment_queue import QueueEntry
    from fedvision.experiment import Experiment
    from fedvision.types import PluginSpec

    teacher = _teacher(config, coming)
    # All but the teacher is checked without it, as FedAvg trains the same network on the same data.
    built = replace(config, strategy=PluginSpec(use="fedavg")) if teacher else config
    try:
        federation = Experiment.build(built, split_here=False)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    _check_out(options.out, config if teacher else federation.config)
    entry = QueueEntry(
        name=config.name,
        experiment=config.to_toml(),
        folder=os.getcwd(),
        modules=str(file.parent.absolute()),
        out=str(options.out.absolute()) if options.out else "",
        wait_for=options.wait_for,
    )
    return entry, teacher


def _teacher(config: ExperimentConfig, coming: Collection[str]) -> str:
    """Return the run that teaches an experiment where it is still to be written, otherwise an empty text."""
    named = config.strategy.args.get("teacher")
    if config.strategy.use != "distillation" or not isinstance(named, str) or not named:
        return ""
    path = Path(os.path.abspath(Path(named).expanduser()))
    return named if any(str(one) in coming for one in (path, *path.parents)) else ""


def _check_out(out: Path | None, config: ExperimentConfig) -> None:
    """Refuse a run folder that holds something else than the experiment, which would fail in its turn.

    Raises:
        ConfigError: It is no folder.
        RunFolderError: It holds something else.
    """
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"--out {out}: this is no folder; name another one")
    from fedvision.runs.folder import RunFolder

    if any(out.iterdir()):
        RunFolder.resume(out, config)


def serve(folder: Path, process: SuperlinkProcess, place: list[str]) -> None:
    """Run the experiments of a queue on a SuperLink, each in a process of its own, until this one is ended.

    Args:
        folder: The queue's.
        process: The SuperLink, which is up.
        place: Options of ``fedvision submit`` that name it.

    Raises:
        KeyboardInterrupt: This process was told to end; what ran goes on at the next start.
    """
    from fedvision.deployment.server.experiment_queue import ExperimentQueue
    from fedvision.runs.folder_lock import claimed

    queue, idle = ExperimentQueue(folder), False
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder, "name another queue with --queue"):
        while True:
            process.ensure()
            entry = queue.next()
            if entry is None:
                if not idle:
                    complain(
                        f"the queue is empty: waiting for `fedvision queue add {typed(folder)} EXPERIMENT`"
                    )
                idle = True
                time.sleep(_LOOK_S)
                continue
            idle = False
            if begun := queue.mark(entry, "running"):
                _run(queue, begun, process, place)


def _run(queue: ExperimentQueue, entry: QueueEntry, process: SuperlinkProcess, place: list[str]) -> None:
    """Run one experiment and write down how it ended."""
    waiting = sum(one.status == "waiting" for one in queue.entries())
    complain(f"experiment {entry.number}, {entry.name}, begins; {plural(waiting, 'experiment')} wait")
    status: Status = "waiting"
    try:
        _await_orphan(Path(entry.out), process)
        with queue.begun(entry) as file:
            code = _await(_start(file, entry, place), process)
        status = _ENDED.get(code, "failed")
        complain(f"experiment {entry.number}, {entry.name}: {status}")
    finally:
        queue.mark(entry, status)


def _await_orphan(out: Path, process: SuperlinkProcess) -> None:
    """Wait for a process that a killed server left at work on this run: it goes on with the rounds."""
    from fedvision.runs.run_state import is_worked_on

    said = False
    while is_worked_on(out):
        if not said:
            complain(f"{out}: the process of an earlier server is at work here; waiting until it has ended")
        said = True
        process.ensure()
        time.sleep(_LOOK_S)


def _start(file: Path, entry: QueueEntry, place: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fedvision.cli.main", "submit", str(file.absolute()), *place]
    command += ["--out", entry.out, "--wait-for", str(entry.wait_for)]
    # Ctrl-C is this process's to handle, which tells the other one.
    return subprocess.Popen(
        command, cwd=entry.folder, env={**os.environ, MODULES: entry.modules}, start_new_session=True
    )


def _await(run: subprocess.Popen[bytes], process: SuperlinkProcess) -> int:
    """Wait for a run's end and keep the SuperLink up; whoever ends this process ends the run first."""
    try:
        while True:
            try:
                return run.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                process.ensure()
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait()
