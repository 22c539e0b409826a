"""Images of several labels on machines that mask what they have: the simulation's bits, across a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvision.deployment.certificates import make
from fedvision.runs.folder import RunFolder
from tests.deployment.server.machines import WAIT_S, digest, eventually, machines
from tests.deployment.server.training_barrier import begun, hold, holding
from tests.experiments import digits_of_several_labels

pytestmark = pytest.mark.long

NAMES = ("east", "north", "south", "west")
EXPERIMENT = """
name = "several"
seed = 5
rounds = 3
[task]
use = "multi-label"
[data]
use = "npz"
path = "{path}"
classes = ["even", "high", "nine"]
[partition]
use = "dirichlet"
clients = 4
alpha = 1.0
[model]
use = "cnn"
width = 4
dense = 8
[loss]
use = "class-balanced"
prior = "global"
[training]
lr = 0.1
[evaluation]
holdout = 0.2
with_training = true
"""


def test_masked_images_of_several_labels_train_to_the_simulations_bits(tmp_path: Path) -> None:
    """The server is killed after a round, so the sums come from its register and the rest is resumed."""
    make(tmp_path / "pki", hosts=["localhost"], clients=NAMES)
    text = EXPERIMENT.format(path=digits_of_several_labels(tmp_path))
    with machines(tmp_path, tmp_path / "pki", text, NAMES) as here:
        here.share = dict.fromkeys(NAMES[1:], "masked")
        server = here.server()
        for name in NAMES:
            here.client(name, **(holding(here, name, 2) if name == "north" else {}))
        eventually(lambda: begun(here, "north") == [1, 2] or server.poll() is not None, "the second round")
        server.kill()
        server.wait()
        assert len(here.rounds()) == 1, here.log("server")
        hold(here, "north")
        assert here.server().wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated(), "the global label counts must be those of all"
        runs = [RunFolder.read(path) for path in (here.out, here.folder / "simulated")]
    for ours, theirs in zip(*(run.rounds() for run in runs), strict=True):
        assert ours["server"] == theirs["server"]
        if theirs.get("received"):
            assert ours["received"]["labels"] == theirs["received"]["labels"]
    assert runs[0].rounds()[-1]["local"]["labels"] == runs[1].rounds()[-1]["local"]["labels"]

    # What is known of the images: of east alone its own, of the others their sum, as of all together.
    members, (together,) = runs[0].members(), runs[0].members().sums
    assert [members.members[client].images is None for client in range(4)] == [False, True, True, True]
    east = members.members[0]
    assert together["clients"] == [1, 2, 3]
    assert east.images + together["images"] == 500 - runs[1].split()["held_out"]
    assert runs[0].split()["totals"] == np.sum(runs[1].split()["counts"], axis=0).tolist()
    page = " ".join((here.out / "report.html").read_text().split())
    assert "3 of 4 clients share class counts in sums alone, or not at all" in page
