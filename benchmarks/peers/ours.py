"""fedvision itself, with the engine named: the whole of ``simulate``, run folder and report included."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGUN = time.perf_counter()

import workloads  # noqa: E402
from common import print_result  # noqa: E402

from fedvision import ExperimentConfig, simulate  # noqa: E402
from fedvision.runs.progress import Silent  # noqa: E402


class Clock(Silent):
    """Takes the time of the rounds; the first begins when all clients have registered."""

    def start(self, rounds: int, first_round: int) -> None:
        self.begun = time.perf_counter()
        self.marks: list[float] = []
        self.evaluation = 0.0

    def round_done(self, round: int, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        self.marks.append(time.perf_counter() - self.begun)
        self.evaluation += seconds["server"] if record["server"] else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workloads.WORKLOADS)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    table = workloads.experiment(options.workload, rounds=options.rounds)
    table["training"]["precision"] = options.precision
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(
            ExperimentConfig.from_dict(table),
            engine=options.engine,
            out=Path(folder) / "run",
            progress=clock,
            threads=1,
        )
        scores = result.scores
    print_result(
        loop_s=clock.marks[-1],
        startup_s=clock.begun - BEGUN,
        evaluation_s=clock.evaluation,
        marks=clock.marks,
        rounds=len(clock.marks),
        accuracy=scores.get("accuracy"),
        examples=sum(record["examples"] for record in result.rounds),
    )


if __name__ == "__main__":
    main()
