"""fedvision beside its peers: the same clients, images and rounds, in turns, in one run.

    python benchmarks/peers.py                                   # all of it: hours
    python benchmarks/peers.py --workloads w1 --engines serial ray --rivals plain tuned
    make bench                                                   # the short form, below ten minutes

A measurement that is done is kept in results/NAME.json and not taken again unless ``--again``; a command that
was broken off goes on where it stopped. Out come results/NAME.json, NAME.md and NAME.svg.

plain: a PyTorch loop without a framework; tuned: the same as an expert leaves it; tuned-2: that in two bare
processes that share memory; pfl and pfl-2: Apple's pfl in one process and in two; flower: Flower on Ray;
fedvision-ENGINE: this project, in float32 or, with a plus and its name behind the engine's, in another
precision.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import environments
import figures
import workloads
from harness import Store, Turn, take, turns
from meter import measure

from fedvision import registry
from fedvision.runs.environment import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SCRIPTS = HERE / "peers"
RIVALS = ("plain", "tuned", "tuned-2", "pfl", "pfl-2", "flower")
IDLE_RIVALS = ("flower",)
OURS = "fedvision-"


def command(turn: Turn, rounds: Mapping[str, int]) -> list[str]:
    """Return what runs a rival on a workload."""
    w, rival = workloads.WORKLOADS[turn.workload], turn.rival
    count = str(rounds[turn.workload])
    if rival.startswith(OURS):
        engine, _, precision = rival.removeprefix(OURS).partition("+")
        program = [sys.executable, str(SCRIPTS / "ours.py"), turn.workload]
        return [*program, "--engine", engine, "--precision", precision or "float32", "--rounds", count]
    numbers = [str(file(turn.workload)), "--batch", str(w["batch"]), "--every", str(w["every"])]
    numbers += ["--rounds", count]
    if rival in ("plain", "tuned"):
        return [sys.executable, str(SCRIPTS / "plain_loop.py"), *numbers, *(["--tuned"] * (rival == "tuned"))]
    if rival == "tuned-2":
        return [sys.executable, str(SCRIPTS / "tuned_pair.py"), *numbers]
    if rival == "flower":
        interpreter, idle = environments.python("flower"), ["--idle"] * (turn.workload == "idle")
        return [str(interpreter), str(SCRIPTS / "flower_ray.py"), *numbers, *idle]
    interpreter = environments.python("pfl")
    several = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
    return [
        str(interpreter), *(several if rival == "pfl-2" else []), str(SCRIPTS / "apple_pfl.py"), *numbers
    ]  # fmt: skip


@cache
def file(workload: str) -> Path:
    """Return the file from which rivals read a workload, written anew by each command."""
    path = environments.CACHE / f"{workload}.npz"
    workloads.export(workload, path)
    return path


def surroundings() -> dict[str, str]:
    """Return the environment of every rival: one thread a process, scripts and project importable."""
    paths = [str(SCRIPTS), str(HERE), str(HERE.parent)]
    # A Ray cluster that happens to run on this machine is not what is measured.
    own = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local", "PYTHONPATH": os.pathsep.join(paths)}
    return {**os.environ, **own}


def check_engines(engines: list[str]) -> None:
    """Refuse an engine that is not there.

    Raises:
        SystemExit: With one sentence.
    """
    known = registry.names("engine")
    for engine in (name.partition("+")[0] for name in engines):
        if engine not in known and ":" not in engine:
            raise SystemExit(f"--engines: fedvision has no engine {engine!r}; there are {', '.join(known)}")


def plan(options: argparse.Namespace) -> list[Turn]:
    """Return the selected measurements."""
    ours = [OURS + engine for engine in options.engines]
    found = []
    for turn in turns(options.workloads, [*options.rivals, *ours], options.repetitions):
        if turn.workload == "idle" and turn.rival in RIVALS and turn.rival not in IDLE_RIVALS:
            continue
        found.append(turn)
    return found


def write(store: Store, name: str, chosen: list[str]) -> str:
    """Write table and picture of all that the store has, and return the table."""
    there = [w for w in chosen if figures.groups(store.runs, w)]
    parts = [figures.header(store.facts, store.runs)]
    for workload in there:
        title = f"## {workload}, {store.facts['rounds'][workload]} rounds"
        made = figures.idle_table if workload == "idle" else figures.table
        parts += [title, made(store.runs, workload)]
    text = "\n\n".join(parts) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    if trained := [workload for workload in there if workload != "idle"]:
        figures.draw(store.runs, trained, RESULTS / f"{name}.svg")
    return text


def main() -> None:
    """Take the measurements that are missing and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=workloads.WORKLOADS, default=["w1", "w2", "idle"])
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=list(RIVALS))
    parser.add_argument(
        "--engines",
        nargs="*",
        default=["serial", "ray", "vectorized"],
        help="of fedvision: serial, ray+bfloat16, ...",
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="fewer rounds in every workload")
    parser.add_argument("--name", default="peers", help="of the files in results/")
    parser.add_argument("--again", action="store_true", help="repeat the selected measurements")
    options = parser.parse_args()
    # A stop from outside ends the rival's processes as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    check_engines(options.engines)
    os.environ["FEDVISION_DATA"] = str(environments.images())
    store = Store(RESULTS / f"{options.name}.json", facts(options.rounds))
    planned = plan(options)
    if options.again:
        store.drop(planned)
    take(
        store,
        planned,
        lambda turn: measure(command(turn, store.facts["rounds"]), surroundings()),
        lambda line: print(line, flush=True),
    )
    print(write(store, options.name, options.workloads))


def facts(rounds: int | None) -> dict[str, Any]:
    """Return what the measurements depend on."""
    return {
        "environment": environment("cpu"),
        "rivals": {name: wanted[0] for name, wanted in environments.REQUIREMENTS.items()},
        "rounds": {name: min(rounds or w["rounds"], w["rounds"]) for name, w in workloads.WORKLOADS.items()},
        "seed": workloads.SEED,
    }


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(str(error)) from error
