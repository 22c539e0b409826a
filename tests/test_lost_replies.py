"""Clients whose answers are lost: what they keep stays in step with the server's half of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedvision import registry, simulate
from fedvision.config import ExperimentConfig
from tests.experiments import tiny

PLUGIN = """
import torch
from torch.nn import functional as F

def moody(round: int, counts):
    '''In every second round a client with many images of class 0 sends back no numbers.'''
    def loss(logits, labels):
        each = F.cross_entropy(logits, labels, reduction="none")
        return each
    return loss

from fedvision.algorithms.scaffold import Scaffold, ScaffoldClient

class Losing(ScaffoldClient):
    '''SCAFFOLD whose client 1 keeps its memory and loses its answer in rounds 2 and 3.'''
    def begin(self, model, parameters, task, memory):
        super().begin(model, parameters, task, memory)
        self._lost = task.client == 1 and task.round in (2, 3)
    def finish(self, steps, lr):
        tensors, memory_out = super().finish(steps, lr)
        if self._lost:
            tensors = {"control": {name: t * float("nan") for name, t in tensors["control"].items()}}
        return tensors, memory_out

class Strategy(Scaffold):
    client = Losing
"""


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    (tmp_path / "scaffold_of_a_test.py").write_text(PLUGIN)
    registry.allow_folder(tmp_path)
    return tiny(strategy={"use": "scaffold_of_a_test:Strategy"}, rounds=4)


def controls(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the server's c and the mean of what the clients keep."""
    saved = next((folder / "checkpoint").glob("round-*/strategy.safetensors"))
    server = {k.removeprefix("control/"): t for k, t in load_file(saved).items() if k.startswith("control/")}
    files = [max(client.glob("*.safetensors")) for client in sorted((folder / "clients").glob("*/*"))]
    states = [load_file(file) for file in files]
    means = {name: torch.stack([one[f"algorithm/{name}"] for one in states]).mean(dim=0) for name in server}
    return server, means


def test_the_servers_control_stays_the_mean_of_the_clients(config: ExperimentConfig, tmp_path: Path) -> None:
    """Client 1's answers of rounds 2 and 3 are refused, so its c_i of round 1 is what round 4 starts from."""
    result = simulate(config, out=tmp_path / "run")
    assert [len(record["refused"]) for record in result.rounds] == [0, 1, 1, 0]
    server, means = controls(tmp_path / "run")
    for name, control in server.items():
        torch.testing.assert_close(control, means[name], rtol=1e-4, atol=1e-5)
    # A run that is stopped in between remembers silent clients.
    from fedvision.runs.folder import RunFolder

    assert RunFolder.read(tmp_path / "run").checkpoints.load().values["rounds"]["silent_since"] == []  # type: ignore[union-attr]
