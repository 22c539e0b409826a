"""A run whose clients mask their class counts: real processes, the right sums, and nothing else on record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedvision.config import ExperimentConfig
from fedvision.deployment.certificates import make
from fedvision.experiment import Experiment
from fedvision.runs.folder import RunFolder
from tests.deployment.server.machines import WAIT_S, Machines, digest, machines

pytestmark = pytest.mark.long

NAMES = ("east", "north", "south", "west")
EXPERIMENT = """
name = "masked"
seed = 5
rounds = 2
[data]
use = "digits"
[partition]
use = "dirichlet"
clients = 4
alpha = 1.0
imbalance = 10
[model]
use = "cnn"
width = 4
dense = 8
[loss]
use = "logit-adjusted"
prior = "mixed"
local_share = 0.3
[training]
lr = 0.1
sampler = "balanced"
[strategy]
use = "ditto"
[evaluation]
holdout = 0.2
with_training = true
"""


def test_masked_run_has_the_simulations_bits(tmp_path: Path) -> None:
    """Masked clients train to the simulation's bits and only their sum is known."""
    make(tmp_path / "pki", hosts=["localhost"], clients=NAMES)
    with machines(tmp_path, tmp_path / "pki", EXPERIMENT, NAMES) as here:
        here.share = dict.fromkeys(NAMES[1:], "masked")
        server = here.server()
        for name in NAMES:
            here.client(name)
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated(), "the global class counts must be those of all"
        logs = "".join(here.log(name) for name in ("server", *NAMES))

    split = json.loads((here.out / "split.json").read_text())
    simulated = json.loads((here.folder / "simulated/split.json").read_text())
    federation = Experiment.build(ExperimentConfig.load(here.experiment))
    assert (split["clients"], split["shown"], split["withheld"], split["exact"]) == (4, [0], 3, True)
    assert "class counts are reported in a sum over 3 or more clients that mask theirs" in here.log("north")
    assert "class counts are masked for a sum over north, south, west" in here.log("north")

    # The same measurements as the simulation's, from sums alone.
    # Of round 1's model they came with round 2's training, of the last one in messages of their own.
    assert [line.get("received", {}).get("round") for line in here.rounds()] == [None, 1]
    runs = [RunFolder.read(path).rounds() for path in (here.out, here.folder / "simulated")]
    for ours, theirs in zip(*runs, strict=True):
        assert ours["local"]["confusion"] == theirs["local"]["confusion"]
        assert ours["local"]["scores"] == theirs["local"]["scores"]
        assert ours["local"]["accuracy"] == {"0": theirs["local"]["accuracy"]["0"]}
        assert ours["local"]["withheld"] == [1, 2, 3]
        assert ours["local"]["spread"]["clients"] == 1
        # Likewise of personal models, which are another question with other masks.
        assert ours["personal"]["confusion"] == theirs["personal"]["confusion"]
        assert ours["personal"]["accuracy"] == {"0": theirs["personal"]["accuracy"]["0"]}
        assert ours["personal"]["withheld"] == [1, 2, 3]
    training = np.array(simulated["counts"])
    held = federation.config.evaluation.holdout
    assert held
    own = [list(row) for row in split["counts"]]
    (sum_of_three,) = RunFolder.read(here.out).members().sums
    assert sum_of_three["clients"] == [1, 2, 3]
    totals = np.array(own[0]) + sum_of_three["counts"]
    assert split["totals"] == totals.tolist()
    assert (totals <= training.sum(0)).all()

    # Nowhere in what the server stores or logs do the counts of a masked client stand.
    stored = logs + "".join(path.read_text() for path in sorted(here.out.glob("*.json*")))
    stored = "".join(stored.split())
    assert json.dumps(own[0]).replace(" ", "") in stored
    for client in (1, 2, 3):
        row = federation.split.counts(np.array([client]))[0].tolist()
        assert json.dumps(row).replace(" ", "") not in stored
    check_nothing_private_stored(here)
    page = (here.out / "report.html").read_text()
    assert "3 of 4 clients share class counts in sums alone, or not at all" in " ".join(page.split())


def check_nothing_private_stored(here: Machines) -> None:
    """Look for clients' images, paths and secrets in every byte that the server wrote."""
    files = [path for top in (here.out, here.folder / "superlink") for path in top.rglob("*")]
    written = {path: path.read_bytes() for path in [*files, here.folder / "server.log"] if path.is_file()}
    assert {"rounds.jsonl", "report.html", "superlink.db", "superlink.log"} <= {path.name for path in written}
    secrets = [(here.folder / "superlink/secret").read_bytes()]
    for name in NAMES:
        secrets.append((here.pki / "clients" / name / "client.key").read_bytes().splitlines()[3])
        secrets += [key.encode() for key in masking_keys(here, name)]
    secrets.append((here.pki / "server/server.key").read_bytes().splitlines()[2])
    paths = [f"{name}.npz".encode() for name in NAMES] + [f"state-{name}".encode() for name in NAMES]
    images = {
        image.tobytes() for name in NAMES for image in np.load(here.folder / f"{name}.npz")["train_images"]
    }
    # The server's own test images may stand in its records; some of the clients' are equal to one.
    test = Experiment.build(ExperimentConfig.load(here.experiment)).dataset.test
    assert test is not None
    images -= {image.tobytes() for image in test.images}
    assert len(images) > 100
    for path, content in written.items():
        assert not any(secret in content for secret in secrets if path.name != "secret"), path
        assert not any(found in content for found in paths), path
        assert not any(image in content for image in images), path
    logs = "".join(here.log(name) for name in NAMES).encode()
    assert not any(secret in logs for secret in secrets)


def masking_keys(here: Machines, name: str) -> list[str]:
    files = list((here.folder / f"state-{name}").rglob("masks.json"))
    assert len(files) == (name != "east")
    return [json.loads(path.read_text())["private"] for path in files]
