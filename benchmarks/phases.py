"""W1 on one device with one engine of fedvision: what the training phases of its rounds take.

``benchmarks/gpu.py`` runs this file in a process of its own for each measurement.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import workloads
from meter import RESULT

from fedvision import ExperimentConfig, simulate
from fedvision.runs.progress import Silent
from fedvision.types import PluginSpec, State


def experiment(rounds: int, device: str, epochs: int = 1) -> ExperimentConfig:
    """Return W1 on a device, measured on the test images after the last round alone."""
    table = workloads.experiment("w1", rounds=rounds)
    table["training"] |= {"device": device, "epochs": epochs}
    table["evaluation"]["every"] = rounds
    return ExperimentConfig.from_dict(table)


class Clock(Silent):
    """Keeps the seconds of each round's training phase, and this process's own seconds when it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def start(self, rounds: int, first_round: int) -> None:
        self.begun = time.perf_counter()
        self.train: list[float] = []
        self.processor: list[float] = []
        self.marks: list[float] = []

    def round_done(self, round: int, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        self.train.append(seconds["train"])
        self.processor.append(time.process_time())
        self.marks.append(time.perf_counter() - self.begun)

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


def run(config: ExperimentConfig, engine: PluginSpec) -> tuple[dict[str, Any], State]:
    """Run an experiment and return its figures and its final state.

    Returns:
        ``train_s``: seconds of all training phases but the first, which warms up; ``processor_s``: seconds of
        this process in all rounds but the first and the last, which evaluates; ``loop_s``: of all rounds;
        images trained on; accuracy; the engine's notices. A round's updates are on the host when its
        phase ends, so a GPU has nothing left to do.

    Raises:
        SystemExit: Clients were trained one by one where they should be trained at once.
    """
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(config, engine=engine, out=Path(folder) / "run", progress=clock)
        alone = [note for note in clock.notes if "trained one by one" in note]
        if alone:
            raise SystemExit(f"this is no measurement of {engine.use}: {alone[0]}")
        facts = {
            "train_s": sum(clock.train[1:]),
            "processor_s": clock.processor[-2] - clock.processor[0],
            "loop_s": clock.marks[-1],
            "rounds": len(clock.marks),
            "examples": sum(record["examples"] for record in result.rounds),
            "accuracy": result.scores.get("accuracy"),
            "notes": clock.notes,
        }
        return facts, result.state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True, help='as JSON: {"use": "vectorized", "args": {...}}')
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--device", required=True)
    options = parser.parse_args()
    engine = PluginSpec(**json.loads(options.engine))
    facts, _ = run(experiment(options.rounds, options.device), engine)
    print(RESULT + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
