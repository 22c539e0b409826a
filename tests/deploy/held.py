"""Clients that note when they train, and that are held in a training until they may go on.

A test that needs a client at work waits for that, however slow the machine is on which it runs.
"""

from __future__ import annotations

import os

from tests.deploy.machines import Machines

_SITE = """
import sys, time
from pathlib import Path
if "fedvision.deploy.trainer" in sys.orig_argv:
    from fedvision.training.worker import Worker
    train = Worker.train
    def held(self, task):
        with Path("{began}").open("a") as file:
            file.write(f"{{task.round}}\\n")
        while str(task.round) in Path("{holds}").read_text().split():
            time.sleep(0.02)
        return train(self, task)
    Worker.train = held
"""


def holding(here: Machines, name: str, *rounds: int) -> dict[str, str]:
    """Return the environment of a client that is held in its trainings of some rounds."""
    site, holds = here.folder / f"held-{name}", here.folder / f"{name}-holds"
    site.mkdir(exist_ok=True)
    code = _SITE.format(began=here.folder / f"{name}-began", holds=holds)
    (site / "sitecustomize.py").write_text(code)
    holds.write_text(" ".join(map(str, rounds)))
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


def release(here: Machines, name: str) -> None:
    """Let a client go on."""
    (here.folder / f"{name}-holds").write_text("")


def begun(here: Machines, name: str) -> list[int]:
    """Return the rounds whose training a client has begun, in that order."""
    file = here.folder / f"{name}-began"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []
