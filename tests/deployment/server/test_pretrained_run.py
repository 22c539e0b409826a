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
[training]
lr = 0.1
[model]
"""
NETWORK = {"use": "resnet8", "norm": "batch", "width": 4}
WHOLE = """use = "resnet8"
norm = "batch"
width = 4
train = "last:1"
weights = "{weights}"
"""
PART = """use = "fusion"
extractor = {{ use = "resnet8", norm = "batch", width = 4, train = "none", weights = "{weights}" }}
transformer = {{ use = "vit", patch = 5, dim = 8, depth = 1, heads = 2 }}
heads = 2
"""


class WithWeights(Machines):
    """Machines of which some have a copy of the weights."""

    copies: dict[str, str]
    """The file that a client names, by its name."""
    part: str
    """Of which part of the network it is; empty is the whole."""

    def client_file(self, name: str, *lines: str) -> Path:
        """Write a client's own file."""
        file = super().client_file(name, *lines)
        if own := self.copies.get(name):
            table = f'[model.parts]\n{self.part} = "{own}"' if self.part else f'[model]\nweights = "{own}"'
            file.write_text(f"{file.read_text()}\n{table}\n")
        return file


@pytest.mark.parametrize(
    ("network", "part", "named"),
    [(WHOLE, "", "weights in [model]"), (PART, "extractor", "parts.extractor in [model]")],
    ids=["whole", "part"],
)
def test_each_client_begins_with_its_own_copy(
    network: str, part: str, named: str, tmp_path: Path, pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Experiment.build(tiny(model=NETWORK, seed=8)).model.state_dict()
    weights = tmp_path / "weights.safetensors"
    save_file(state, weights)
    (tmp_path / "copy.safetensors").write_bytes(weights.read_bytes())
    save_file({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "other.safetensors")
    monkeypatch.setattr("tests.deployment.server.machines.Machines", WithWeights)
    with machines(tmp_path, pki, EXPERIMENT + network.format(weights=weights)) as here:
        assert isinstance(here, WithWeights)
        here.part = part
        here.copies = {"north": "copy.safetensors", "south": "other.safetensors"}
        server = here.server()
        here.client("north")
        south = here.client("south")
        eventually(
            lambda: f"south cannot take part: {named}" in here.log("server") or server.poll() is not None,
            "south is refused",
        )
        south.kill()
        south.wait()
        here.copies["south"] = "copy.safetensors"
        here.client("south")
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
        assert all(record["refused"] == [] for record in here.rounds())
