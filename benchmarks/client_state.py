"""What 100,000 clients that keep something between rounds cost: SCAFFOLD's control variates on disk.

    python benchmarks/client_state.py [--clients 100000] [--parameters 2500]

Every client saves its state once and again in a later round, and clients in random order load theirs. The
table gives the time of one call and the memory of this process after each tenth of the clients: both should
not grow with them. Files go to a temporary folder under ``--folder`` and are removed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvision.runs.environment import environment
from fedvision.training.client_state import ClientStateStore

RESULTS = Path(__file__).parent / "results"


def state(parameters: int, value: float) -> dict[str, dict[str, torch.Tensor]]:
    """Return a control variate of about this many numbers, in four tensors as a small network has."""
    wide = max(1, (parameters - 30) // 20)
    shapes = {
        "hidden.weight": (10, wide),
        "hidden.bias": (10,),
        "head.weight": (wide, 10),
        "head.bias": (20,),
    }
    return {"algorithm": {name: torch.full(shape, value) for name, shape in shapes.items()}}


def resident() -> float:
    """Return this process's resident memory in MB, pages of mapped files left out."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def measure(folder: Path, clients: int, parameters: int) -> list[dict[str, Any]]:
    """Save, save again and load in ten parts of the clients; return the figures of each part."""
    memory = ClientStateStore(folder)
    drawn = np.random.default_rng(0)
    rows = []
    for part in np.array_split(np.arange(clients), 10):
        first = [timed(memory.save, int(client), 1, state(parameters, 1.0)) for client in part]
        again = [timed(memory.save, int(client), 2, state(parameters, 2.0)) for client in part]
        some = drawn.integers(0, part[-1] + 1, 1000)
        load = [timed(read, memory, int(client)) for client in some]
        rows.append(
            {
                "clients": int(part[-1]) + 1,
                "save_us": statistics.median(first),
                "save_again_us": statistics.median(again),
                "load_us": statistics.median(load),
                "resident_mb": resident(),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def read(memory: ClientStateStore, client: int) -> None:
    """Load a client's state and read every number of it, as training does."""
    groups = memory.load(client, 3)
    assert all(float(tensor.mean()) == 2.0 for tensor in groups["algorithm"].values())


def timed(call: Any, *arguments: Any) -> float:
    """Return the microseconds of one call."""
    begun = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - begun) * 1e6


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| clients with a state | first save, us | later save, us | load and read, us | memory, MB |",
        "|---|---|---|---|---|",
    ]
    keys = ("save_us", "save_again_us", "load_us", "resident_mb")
    for row in rows:
        cells = [f"{row[key]:.0f}" for key in keys]
        lines.append(f"| {row['clients']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--parameters", type=int, default=2500, help="numbers in a client's state")
    parser.add_argument("--folder", type=Path, help="where the files go for a while; the system's otherwise")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(Path(folder), options.clients, options.parameters)
    facts = {
        "environment": environment("cpu"),
        "options": {"clients": options.clients, "parameters": options.parameters},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "client_state.json").write_text(json.dumps(facts, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
