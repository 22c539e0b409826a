"""A run in which everything goes wrong once, beside the same experiment undisturbed.

    python benchmarks/chaos.py [--rounds 10] [--seeds 3]

Six machines, each a network namespace with an address of its own (root, Linux), TLS and keys, Fashion-MNIST
in folders of classes on five clients. Processes are killed, a machine loses its power, a link is cut for half
a minute, a disk is full, a client is slow, one sends NaN, one gets a message twice
(tests/deployment/server/chaos.py).
The run has to end by itself, with every round once, everything in its report, and an accuracy within
the noise of undisturbed runs: simulations of the same experiment with several seeds. Writes
results/chaos.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fedvision.deployment.certificates import make  # noqa: E402
from fedvision.reporting.run_data import read_facts  # noqa: E402
from fedvision.runs.events import Event  # noqa: E402
from fedvision.runs.folder import RunFolder  # noqa: E402
from tests.deployment.server.chaos import NAMES, ChaosRun  # noqa: E402
from tests.deployment.server.network import missing, network  # noqa: E402

PAGE = Path(__file__).parent / "results/chaos.md"
RAW = Path("/usr/share/datasets/fashion-mnist")
CUT_S = 30.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--raw", type=Path, default=RAW, help="folder of Fashion-MNIST's files")
    options = parser.parse_args()
    if why := missing():
        print(f"fedvision: {why}", file=sys.stderr)
        return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder), options.raw, options.rounds, options.seeds)
    page = written(facts)
    PAGE.write_text(page)
    print(page)
    return 0 if not facts["missing_events"] and facts["whole"] and facts["within"] else 1


def measure(folder: Path, raw: Path, rounds: int, seeds: int) -> dict[str, Any]:
    """Run the disturbed experiment, then the undisturbed ones."""
    make(folder / "pki", hosts=["10.77.0.1"], clients=NAMES)
    began = time.monotonic()
    with network("server", *NAMES) as net:
        here = ChaosRun(folder, folder / "pki", raw, net, rounds=rounds, epochs=8)
        try:
            here.torment(CUT_S)
            code = here.servers[-1].wait(1200)
        finally:
            here.end()
        seconds = time.monotonic() - began
    usual = [undisturbed(here, seed) for seed in range(5, 5 + seeds)]
    found = accuracy(here.out)
    noise = 3 * max(statistics.stdev(usual) if seeds > 1 else 0.0, 0.01)
    return {
        "code": code,
        "seconds": seconds,
        "rounds": rounds,
        "whole": [record["round"] for record in here.rounds()] == list(range(1, rounds + 1)),
        "accuracy": found,
        "usual": usual,
        "within": abs(found - statistics.mean(usual)) <= noise,
        "missing_events": here.missing_events(),
        "events": read_facts(RunFolder(here.out)).events,
    }


def undisturbed(here: ChaosRun, seed: int) -> float:
    """Simulate the same experiment and return its accuracy."""
    out = here.folder / f"undisturbed-{seed}"
    command = [
        sys.executable,
        "-m",
        "fedvision.cli.main",
        "simulate",
        str(here.experiment),
        "--engine",
        "serial",
    ]
    subprocess.run([*command, "--set", f"seed={seed}", "--out", str(out)], check=True, capture_output=True)
    return accuracy(out)


def accuracy(run: Path) -> float:
    """Return the accuracy on the test images after the last round."""
    last = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])
    return float(last["server"]["scores"]["accuracy"])


def written(facts: dict[str, Any]) -> str:
    """Return the page."""
    usual = ", ".join(f"{value:.3f}" for value in facts["usual"])
    events: list[Event] = facts["events"]
    rows = [f"| {event.round} | {event.client or 'server'} | {event.what} |" for event in events]
    return "\n".join(
        [
            "# A run in which everything goes wrong once",
            "",
            "`python benchmarks/chaos.py`, "
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in ("flwr", "torch")),
            "",
            f"- exit code {facts['code']} after {facts['seconds']:.0f} s, {facts['rounds']} rounds, "
            + ("each recorded once" if facts["whole"] else "NOT each recorded once"),
            f"- accuracy {facts['accuracy']:.3f}; undisturbed, by seed: {usual}: "
            + ("within noise" if facts["within"] else "NOT within noise"),
            "- everything is in the report"
            if not facts["missing_events"]
            else f"- MISSING: {facts['missing_events']}",
            "",
            "The report's events:",
            "",
            "| round | who | what |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
