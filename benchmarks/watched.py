"""What two pages of ``fedvision watch``, each with a viewer, cost the run that they show.

    python benchmarks/watched.py [--pairs 5]

The same run of digits (10 clients, 60 rounds of about 0.1 s: more often than a page draws), alone and watched
in turns; seconds of its rounds as it records them, and whether records and model are the same bytes. Results
go to results/watched.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
from harness import Store, Turn, take, turns

from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
RIVALS = ("alone", "two pages, a viewer each")
EXPERIMENT = """
name = "watched"
rounds = 60
data = "digits"
partition = { use = "dirichlet", clients = 10, alpha = 0.5 }
model = { use = "cnn", width = 16, dense = 32 }
training = { epochs = 2 }
"""
COMMAND = (sys.executable, "-m", "fedvision.cli.main")


def look(page: str) -> None:
    """Take in what a page sends, as a browser does, until it ends."""
    with (
        suppress(httpx.HTTPError),
        httpx.stream("GET", f"{page}events", timeout=600, trust_env=False) as stream,
    ):
        for _ in stream.iter_lines():
            pass


def watch(run: Path, until: ExitStack) -> None:
    """Show a run that is about to begin, to one viewer."""
    process = subprocess.Popen(
        [*COMMAND, "watch", str(run), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    until.callback(process.wait)
    until.callback(process.terminate)
    assert process.stdout
    page = process.stdout.readline().rpartition(": ")[2].strip()
    threading.Thread(target=look, args=(page,), daemon=True).start()


def measure(turn: Turn) -> dict[str, Any]:
    """Run the experiment; return the seconds of its rounds and a digest of what it left."""
    import hashlib

    with tempfile.TemporaryDirectory() as folder, ExitStack() as until:
        file, run = Path(folder) / "watched.toml", Path(folder) / "run"
        file.write_text(EXPERIMENT)
        for _ in range(2 * RIVALS.index(turn.rival)):
            watch(run, until)
        command = [*COMMAND, "simulate", str(file), "--engine", "serial", "--out", str(run)]
        subprocess.run(command, check=True, capture_output=True)
        lines = (run / "timings.jsonl").read_text().splitlines()
        left = b"".join((run / name).read_bytes() for name in ("rounds.jsonl", "model.safetensors"))
        return {
            "seconds": sum(json.loads(line)["total"] for line in lines),
            "sha256": hashlib.sha256(left).hexdigest(),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="makes results/watched.json again")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each kind (default: 5)")
    options = parser.parse_args()
    store = Store(RESULTS / "watched.json", {"environment": environment("cpu"), "experiment": EXPERIMENT})
    plan = list(turns(["digits, 60 rounds"], RIVALS, options.pairs))
    take(store, plan, measure, describe=lambda run: f"{run['seconds']:.2f} s")
    found = {rival: [run for run in store.runs if run["rival"] == rival] for rival in RIVALS}
    medians = [statistics.median(run["seconds"] for run in found[rival]) for rival in RIVALS]
    bits = {run["sha256"] for run in store.runs}
    print(f"{medians[0]:.2f} s alone, {medians[1]:.2f} s watched: {medians[1] / medians[0]:.3f}")
    print("the same bytes" if len(bits) == 1 else f"{len(bits)} different results")
