"""Statistics, refinement and transformed updates across machines: the simulation's bits, after kills too."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
from safetensors import safe_open

from fedvision.config import ExperimentConfig
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.own_sums import write_sums
from fedvision.experiment import Experiment
from fedvision.trained_model import load
from fedvision.unlearning import request_sums, unlearn
from tests.deployment.server.machines import WAIT_S, digest, eventually, machines
from tests.deployment.server.training_barrier import begun, hold, holding

pytestmark = pytest.mark.long

EXPERIMENT = """
name = "two"
seed = 3
rounds = 3
[data]
use = "digits"
[partition]
use = "dirichlet"
clients = 2
alpha = 1.0
[model]
use = "cnn"
width = 4
dense = 8
[training]
lr = 0.1
"""
CCVR = '[strategy]\nuse = "ccvr"\nevery = 1\nsteps = 50\n'
CREFF = '[strategy]\nuse = "creff"\nsamples = 5\nmatch_steps = 5\nsteps = 50\n'
RUCR = '[strategy]\nuse = "rucr"\nsamples = 5\nsteps = 20\n'
FEDRELA = '[strategy]\nuse = "fedrela"\nwarmup = 1\nshare = 0.2\n'
FEDGAN = '[strategy]\nuse = "fedgan"\nwarmup = 1\nmaps = 4\nnoise = 4\n'
CLOSED_FORM = """
[evaluation]
holdout = 0.2
calibrate = true
[strategy]
use = "closed-form"
regularization = "auto"
"""
UPDATE = """
[[update]]
use = "clip"
max_norm = 0.5
[[update]]
use = "float16"
[[update]]
use = "top-k"
fraction = 0.05
"""


@pytest.mark.parametrize(("strategy", "statistic"), [(CCVR, "feature-moments"), (CREFF, "head-gradients")])
def test_refined_run_killed_and_resumed(strategy: str, statistic: str, tmp_path: Path, pki: Path) -> None:
    """Every round asks for moments or gradients, and the server trains the head on what it makes of them."""
    with machines(tmp_path, pki, EXPERIMENT + strategy) as here:
        here.statistics = (statistic,)
        server = here.server()
        here.client("north", **holding(here, "north", 3))
        here.client("south")
        eventually(lambda: begun(here, "north") == [1, 2, 3] or server.poll() is not None, "the third round")
        server.kill()
        server.wait()
        assert len(here.rounds()) == 2
        hold(here, "north")
        assert here.server().wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
        theirs = [json.loads(line) for line in (tmp_path / "simulated/rounds.jsonl").read_text().splitlines()]
        for mine, simulated in zip(here.rounds(), theirs, strict=True):
            assert mine["refused"] == []
            assert mine["statistics"] == simulated["statistics"]
            assert mine["statistics"][statistic]["clients"] == [0, 1]
            assert mine["bytes"] == simulated["bytes"]


def test_a_head_in_closed_form_has_the_simulations_bits(
    tmp_path: Path, pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody trains; each client answers four queries about its images, those out of training among them."""
    frozen = EXPERIMENT.replace("dense = 8", 'dense = 8\nfrozen = ["backbone.*"]').replace(
        "rounds = 3", "rounds = 1"
    )
    with machines(tmp_path, pki, frozen + CLOSED_FORM) as here:
        here.statistics = ("feature-sums", "weighted-products", "head-scores", "likelihoods")
        server = here.server()
        for name in ("north", "south"):
            here.client(name)
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
        (record,) = here.rounds()
        assert (record["refused"], record["clients"], record["changed"]) == ([], [0, 1], True)
        assert set(record["statistics"]) == set(here.statistics)
        assert record["local"]["scores"]["accuracy"] > 0.3
        simulated = json.loads((tmp_path / "simulated/rounds.jsonl").read_text())
        assert record["calibration"] == simulated["calibration"]
        assert load(here.out).description.probability_scale == record["calibration"]["factor"] > 2
        assert (here.out / "report.html").is_file()
        here.client_file("south")
    # The client's own sums, which it computes once more, leave what the other one would have made alone.
    monkeypatch.chdir(tmp_path)
    request = request_sums(here.out, "south")
    write_sums(ClientMachineConfig.load("south.toml"), tmp_path, request, tmp_path / "sums")
    found = unlearn(here.out, sums=[tmp_path / "sums"], out=tmp_path / "without")
    wanted = unlearn(tmp_path / "simulated", [1], out=tmp_path / "wanted")
    assert digest(found.folder.path) == digest(wanted.folder.path) != digest(here.out)


def test_transformed_updates_of_a_client_that_is_killed_between_rounds(tmp_path: Path, pki: Path) -> None:
    """What north left out of its update of round 2 is on disk when it is killed, and is sent in round 3."""
    with machines(tmp_path, pki, EXPERIMENT + UPDATE) as here:
        server = here.server()
        north = here.client("north")
        here.client("south", **holding(here, "south", 2))
        done = "train: done"
        eventually(lambda: here.log("north").count(done) == 2 or server.poll() is not None, "an answer")
        assert begun(here, "south") == [1, 2], "the second round goes on without north"
        north.send_signal(signal.SIGKILL)
        assert north.wait() == -signal.SIGKILL
        here.client("north")
        eventually(lambda: here.log("north").count("north is connected to") == 2, "north again")
        hold(here, "south")
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert here.log("north").count(done) == 3, "no round is trained twice"
        assert digest(here.out) == here.simulated()
        assert [record["refused"] for record in here.rounds()] == [[]] * 3
        bytes_are_those_of_the_compressed_form(here.experiment, here.rounds())
        page = " ".join((here.out / "report.html").read_text().split())
        assert "without [[update]]" in page
        (kept,) = (tmp_path / "state-north").rglob("round-0000003.safetensors")
        with safe_open(kept, "pt") as file:
            assert list(file.keys()) == ["residual/2.top-k"]


def bytes_are_those_of_the_compressed_form(experiment: Path, rounds: list[dict[str, dict[str, int]]]) -> None:
    """A value in half precision and a position of 4 bytes for a twentieth of the parameters."""
    model = Experiment.build(ExperimentConfig.load(experiment)).model
    parameters = sum(math.prod(tensor.shape) for tensor in model.parameters())
    whole = 2 * 4 * parameters
    wanted = {"down": whole, "up": 2 * round(0.05 * parameters) * (2 + 4), "up_whole": whole}
    assert [record["bytes"] for record in rounds] == [wanted] * 3


def test_prototypes_and_a_head_of_the_clients_are_the_simulations(tmp_path: Path, pki: Path) -> None:
    """Prototypes travel in each round, and after the last one the clients train the head."""
    with machines(tmp_path, pki, EXPERIMENT + RUCR) as here:
        here.statistics = ("class-prototypes", "rectified-head")
        server = here.server()
        here.client("north")
        here.client("south")
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
        for record in here.rounds():
            assert record["refused"] == []
            wanted = here.statistics if record["round"] == 3 else here.statistics[:1]
            assert set(record["statistics"]) == set(wanted)


def test_labels_that_clients_changed_are_the_simulations(tmp_path: Path, pki: Path) -> None:
    """New labels stay on the machines and take part from the second round on."""
    with machines(tmp_path, pki, EXPERIMENT + FEDRELA) as here:
        server = here.server()
        here.client("north")
        here.client("south")
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()


def test_a_generator_is_the_simulations(tmp_path: Path, pki: Path) -> None:
    """Three rounds on machines whose owners allow a generator: the model and the generator, to the bit."""
    with machines(tmp_path, pki, EXPERIMENT + FEDGAN) as here:
        here.generators = True
        server = here.server()
        here.client("north")
        here.client("south")
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
        assert [record["clients"] for record in here.rounds()] == [[0, 1]] * 3
        own, simulated = (folder / "generator.safetensors" for folder in (here.out, tmp_path / "simulated"))
        assert own.read_bytes() == simulated.read_bytes()
