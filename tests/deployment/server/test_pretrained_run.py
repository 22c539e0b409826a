"""A network of which a part is not sent, across machines: the simulation's bits; who lacks the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from fedvision.experiment import Experiment
from tests.deployment.server.machines import WAIT_S, Machines, digest, eventually, machines
from tests.experiments import tiny

pytestmark = pytest.mark.long

EXPERIMENT = """
name = "two"
seed = 3
rounds = 2
[data]
use = "digits"
[partition]
use = "dirichlet"
clients = 2
alpha = 1.0
[transforms]
mean = [0.4]
std = [0.3]
size = 10
[model]
use = "resnet8"
norm = "batch"
width = 4
train = "last:1"
weights = "{weights}"
[training]
lr = 0.1
"""


class WithWeights(Machines):
    """Machines of which some have a copy of the weights."""

    copies: dict[str, str]
    """The file that a client names, by its name."""

    def client_file(self, name: str, *lines: str) -> Path:
        """Write a client's own file."""
        file = super().client_file(name, *lines)
        if own := self.copies.get(name):
            file.write_text(file.read_text() + f'\n[model]\nweights = "{own}"\n')
        return file


def test_each_client_begins_with_its_own_copy(
    tmp_path: Path, pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = {"use": "resnet8", "norm": "batch", "width": 4}
    state = Experiment.build(tiny(model=network, seed=8)).model.state_dict()
    weights = tmp_path / "weights.safetensors"
    save_file(state, weights)
    (tmp_path / "copy.safetensors").write_bytes(weights.read_bytes())
    save_file({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "other.safetensors")
    monkeypatch.setattr("tests.deployment.server.machines.Machines", WithWeights)
    with machines(tmp_path, pki, EXPERIMENT.format(weights=weights)) as here:
        assert isinstance(here, WithWeights)
        here.copies = {"north": "copy.safetensors", "south": "other.safetensors"}
        server = here.server()
        here.client("north")
        south = here.client("south")
        eventually(
            lambda: (
                "south cannot take part: weights in [model]" in here.log("server")
                or server.poll() is not None
            ),
            "south is refused",
        )
        south.kill()
        south.wait()
        here.copies["south"] = "copy.safetensors"
        here.client("south")
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
        assert all(record["refused"] == [] for record in here.rounds())
