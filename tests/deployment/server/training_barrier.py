"""Clients that note when they train, and that are held in a training until they may go on.

A test that needs a client at work waits for that, however slow the machine is on which it runs.
"""

from __future__ import annotations

import os

from tests.deployment.server.machines import Machines

_SITE = """
import sys, time
from pathlib import Path
if "fedvision.deployment.client.trainer" in sys.orig_argv:
    from fedvision.training.client_trainer import ClientTrainer
    train = ClientTrainer.train
    def held(self, request):
        with Path("{began}").open("a") as file:
            file.write(f"{{request.round}}\\n")
        while str(request.round) in Path("{holds}").read_text().split():
            time.sleep(0.02)
        return train(self, request)
    ClientTrainer.train = held
"""


def holding(here: Machines, name: str, *rounds: int, more: str = "") -> dict[str, str]:
    """Return the environment of a client that is held in its trainings of some rounds, and does ``more``."""
    site = here.folder / f"held-{name}"
    site.mkdir(exist_ok=True)
    code = _SITE.format(began=here.folder / f"{name}-began", holds=here.folder / f"{name}-holds")
    (site / "sitecustomize.py").write_text(code + more)
    hold(here, name, *rounds)
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


def hold(here: Machines, name: str, *rounds: int) -> None:
    """Hold a client in its trainings of these rounds, and no longer in those of others."""
    file = here.folder / f"{name}-holds"
    file.with_suffix(".part").write_text(" ".join(map(str, rounds)))
    file.with_suffix(".part").replace(file)


def begun(here: Machines, name: str) -> list[int]:
    """Return the rounds whose training a client has begun, in that order."""
    file = here.folder / f"{name}-began"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []
