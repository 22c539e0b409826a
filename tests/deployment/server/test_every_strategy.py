"""Every strategy across machines, on one server with a queue: the simulation's bits and record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedvision import ExperimentConfig, registry, simulate
from fedvision.deployment.certificates import make
from fedvision.deployment.server.experiment_queue import ExperimentQueue, QueueEntry
from fedvision.runs.folder import RunFolder
from tests.deployment.server.machines import digest, eventually
from tests.deployment.server.test_experiment_queue import Queueing
from tests.methods import STRATEGIES, tables

NAMES = ("north", "south")
NOT_HERE = {
    "zero-shot": "its head is made of class embeddings, of which digits have none",
    "krum": "it needs three clients; whole updates are combined by 'median', too",
}
"""Strategies that are not tried here, and why."""
USES = sorted(set(STRATEGIES) - NOT_HERE.keys())
WAIT_S = 3600.0


def experiment(use: str, teacher: Path) -> ExperimentConfig:
    """Return three rounds on digits with a long tail, of which each client lacks classes."""
    own = tables(use, {"use": "cnn", "width": 4, "dense": 8}, teacher=teacher)
    config: dict[str, Any] = {
        "name": use,
        "seed": 3,
        "rounds": 3,
        "data": {"use": "digits"},
        "partition": {"use": "dirichlet", "clients": len(NAMES), "alpha": 0.3, "imbalance": 10},
        "training": {"lr": 0.1},
        "evaluation": {"holdout": 0.2},
    }
    return ExperimentConfig.from_dict(config | own)


class Deployed:
    """What a server with a queue made of each strategy's experiment.

    Args:
        here: The server and its clients.
        teacher: The folder of the run that teaches.
    """

    def __init__(self, here: Queueing, teacher: Path) -> None:
        self.here, self.teacher = here, teacher
        self.queue = ExperimentQueue(here.folder / "queue")

    def run(self) -> None:
        """Run all of them, one after the other, with the same clients."""
        folder = str(self.here.folder)
        for use in USES:
            text = experiment(use, self.teacher).to_toml()
            out = str(self.here.folder / use)
            self.queue.add(
                QueueEntry(
                    name=use, experiment=text, folder=folder, modules=folder, out=out, wait_for=len(NAMES)
                )
            )
        server = self.here.serve()
        for name in NAMES:
            self.here.client(name)
        ended = ("done", "failed", "stopped")
        eventually(
            lambda: (
                server.poll() is not None  # type: ignore[attr-defined]
                or [one.status in ended for one in self.queue.entries()] == [True] * len(USES)
            ),
            "the last experiment of the queue",
            WAIT_S,
        )

    def status(self, use: str) -> str:
        """Return how an experiment ended."""
        return next(one.status for one in self.queue.entries() if one.name == use)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Run every strategy on a server and three clients, each in a process of its own."""
    folder = tmp_path_factory.mktemp("every-strategy")
    make(folder / "pki", hosts=["localhost"], clients=NAMES)
    simulate(experiment("fedavg", folder), out=folder / "teacher")
    here = Queueing(folder, folder / "pki", experiment("fedavg", folder).to_toml(), NAMES)
    here.statistics = tuple(sorted(registry.BUILTINS["statistic"]))
    here.generators = True
    try:
        found = Deployed(here, folder / "teacher")
        found.run()
        yield found
    finally:
        here.end()


@pytest.mark.long
@pytest.mark.parametrize("use", USES)
def test_it_ends_in_the_simulations_bits(use: str, deployed: Deployed, tmp_path: Path) -> None:
    run = deployed.here.folder / use
    assert deployed.status(use) == "done", deployed.here.log("server")
    simulate(experiment(use, deployed.teacher), out=tmp_path / "simulated")
    assert digest(run) == digest(tmp_path / "simulated")
    ours, theirs = (RunFolder.read(folder).rounds() for folder in (run, tmp_path / "simulated"))
    for mine, his in zip(ours, theirs, strict=True):
        for key in ("clients", "local", "bytes", "train_loss", "refused"):
            assert mine[key] == his[key], key


def test_strategies_that_are_left_out_are_there() -> None:
    assert set(STRATEGIES) >= NOT_HERE.keys()
