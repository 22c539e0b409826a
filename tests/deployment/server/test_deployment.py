"""The same experiment across machines: real processes, TLS, keys, and ``kill -9`` of each of them."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from fedvision import ExperimentConfig, __version__, simulate
from fedvision.deployment.certificates import make
from fedvision.deployment.run_manifest import PROTOCOL
from fedvision.reporting.run_data import read_facts
from fedvision.runs.folder import RunFolder
from tests.deployment.server.machines import WAIT_S, Machines, digest, eventually, machines
from tests.deployment.server.training_barrier import begun, hold, holding
from tests.experiments import digits_of_several_labels

EXPERIMENT = """
name = "two"
seed = 3
rounds = {rounds}
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
epochs = {epochs}
lr = 0.1
[strategy]
use = "{strategy}"
[evaluation]
holdout = 0.2
"""


def with_several_labels(text: str, folder: Path) -> str:
    """Return an experiment on digits with other labels, of which an image may have several."""
    data = f'use = "npz"\npath = "{digits_of_several_labels(folder)}"\nclasses = ["even", "high", "nine"]\n'
    tables = '[task]\nuse = "multi-label"\n[loss]\nuse = "class-balanced"\nprior = "global"\n'
    return text.replace('use = "digits"\n', data + tables)


@pytest.mark.parametrize(
    "kind",
    [
        "fedntd",
        *(
            pytest.param(kind, marks=pytest.mark.long)
            for kind in (
                *("fedper", "fednova", "fedvls", "multi-label", "lora", "distillation"),
                *("fedbn", "fedrep", "ditto", "apfl", "q-fedavg"),
            )
        ),
    ],
)
@pytest.mark.slow
def test_three_rounds_across_machines_end_in_the_simulations_bits(
    kind: str, tmp_path: Path, pki: Path
) -> None:
    use = "fedavg" if kind in ("multi-label", "lora", "distillation") else kind
    text = EXPERIMENT.format(rounds=3, epochs=1, strategy=use)
    if kind == "fedper":
        groups = 'personal = ["head.*"]\nfrozen = ["backbone.features.conv1.*"]\n'
        text = text.replace("dense = 8\n", "dense = 8\n" + groups)
    elif kind == "fedbn":
        text = text.replace('"cnn"\nwidth = 4\ndense = 8\n', '"resnet8"\nwidth = 4\nnorm = "batch"\n')
    elif kind == "lora":
        text = text.replace("dense = 8\n", 'dense = 8\ntrain = "lora"\nlora = { rank = 1, alpha = 1 }\n')
    elif kind == "distillation":
        taught = EXPERIMENT.format(rounds=1, epochs=1, strategy="fedavg").replace("width = 4", "width = 8")
        simulate(ExperimentConfig.from_toml(taught), out=tmp_path / "teacher")
        named = f'use = "distillation"\nteacher = "{tmp_path / "teacher"}"\n'
        text = text.replace('use = "fedavg"\n', named)
    elif kind == "multi-label":
        text = with_several_labels(text, tmp_path)
    with machines(tmp_path, pki, text) as here:
        server = here.server()
        north, south = here.client("north"), here.client("south")
        assert server.wait(WAIT_S) == 0, here.log("server")
        expected = here.simulated()
        assert digest(here.out) == expected
        assert [record["clients"] for record in here.rounds()] == [[0, 1]] * 3
        assert all(record["refused"] == [] for record in here.rounds())
        simulated = RunFolder.read(tmp_path / "simulated").rounds()
        for ours, theirs in zip(here.rounds(), simulated, strict=True):
            assert ours["local"] == theirs["local"]
            assert ours.get("personal") == theirs.get("personal")
            assert ("personal" in ours) == (kind in ("ditto", "apfl"))
            assert ours["bytes"] == theirs["bytes"]
        if kind == "distillation":
            kept = list(tmp_path.glob("**/constants/*"))
            teacher = (tmp_path / "teacher/model.safetensors").stat().st_size
            assert len(kept) == 2, "each client has the teacher's one piece"
            assert all(file.stat().st_size == pytest.approx(teacher, rel=0.2) for file in kept)
        for name in ("report.html", "summary.json", "split.json"):
            assert (here.out / name).exists()
        assert "of work, so far at most" in here.log("north")
        # The clients do not end with the run; they end on a signal, and in order.
        for client in (north, south):
            assert client.poll() is None
            client.send_signal(signal.SIGTERM)
            assert client.wait(WAIT_S) == 0


@pytest.mark.long
def test_kept_server_serves_submitted_runs(tmp_path: Path, pki: Path) -> None:
    """A server that is kept serves what is submitted and ends with Ctrl-C."""
    with machines(tmp_path, pki, EXPERIMENT.format(rounds=1, epochs=1, strategy="fedavg")) as here:
        server = here.server("--keep")
        clients = [here.client(name) for name in here.names]
        eventually(lambda: "the SuperLink stays up on" in here.log("server"), "the first run")
        first = digest(here.out)
        second = tmp_path / "second.toml"
        second.write_text(EXPERIMENT.format(rounds=2, epochs=1, strategy="fedprox").replace("two", "three"))
        assert here.submit(second, tmp_path / "second").wait(WAIT_S) == 0, here.log("submit")
        lines = (tmp_path / "second/rounds.jsonl").read_text().splitlines()
        assert [json.loads(line)["clients"] for line in lines] == [[0, 1]] * 2
        assert (tmp_path / "second/report.html").exists()
        assert digest(tmp_path / "second") != first == digest(here.out)
        assert server.poll() is None
        assert [client.poll() for client in clients] == [None, None], "the same processes serve both runs"
        server.send_signal(signal.SIGINT)
        assert server.wait(WAIT_S) == 0, "both runs are done"
        again = here.submit(second, tmp_path / "third")
        assert again.wait(WAIT_S) == 2
        assert "no SuperLink answers there; start one with `fedvision server" in here.log("submit")
        assert not (tmp_path / "third").exists()
        for client in clients:
            client.send_signal(signal.SIGINT)
        assert {client.wait(WAIT_S) for client in clients} == {130}


@pytest.mark.long
def test_killed_clients_and_servers_go_on_to_the_same_bits(tmp_path: Path, pki: Path) -> None:
    text = EXPERIMENT.format(rounds=4, epochs=8, strategy="scaffold")
    with machines(tmp_path, pki, text) as here:
        server = here.server()
        north = here.client("north", **holding(here, "north", 2))
        here.client("south", **holding(here, "south", 3))
        eventually(lambda: begun(here, "north") == [1, 2] or server.poll() is not None, "the second round")
        north.kill()
        north.wait()
        here.client("north", **holding(here, "north"))
        # South is in its third training and north has answered: its third training message.
        done = "train: done"
        eventually(lambda: here.log("north").count(done) == 3 or server.poll() is not None, "an answer")
        eventually(lambda: begun(here, "south") == [1, 2, 3], "a client at work")
        server.kill()
        server.wait()
        assert len(here.rounds()) == 2
        hold(here, "south")
        again = here.server()
        assert again.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
        assert [record["refused"] for record in here.rounds()] == [[]] * 4
        # Only who was killed in the middle of a training does it again.
        assert begun(here, "north") == [1, 2, 2, 3, 4]
        assert begun(here, "south") == [1, 2, 3, 4]
        for name in here.names:
            assert "this task was done before; the same reply is sent" in here.log(name)


@pytest.mark.long
def test_a_training_process_killed_alone_does_not_change_the_bits(tmp_path: Path, pki: Path) -> None:
    text = EXPERIMENT.format(rounds=3, epochs=1, strategy="scaffold")
    with machines(tmp_path, pki, text) as here:
        server = here.server()
        north = here.client("north", **holding(here, "north", 2))
        here.client("south")
        eventually(lambda: begun(here, "north") == [1, 2] or server.poll() is not None, "the second round")
        os.kill(here.training_child(north), signal.SIGKILL)
        hold(here, "north")
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
        assert [record["refused"] for record in here.rounds()] == [[]] * 3
        assert begun(here, "north") == [1, 2, 2, 3]
        page = (here.out / "report.html").read_text()
        assert "reports that its training process died in a task, which it did once more" in page
        assert [one.member.name for one in read_facts(RunFolder.read(here.out)).participants] == list(
            here.names
        )
        assert north.poll() is None


@pytest.mark.long
def test_a_client_that_cannot_take_part_is_logged_on_both_sides(tmp_path: Path) -> None:
    names = ("north", "south", "west")
    make(tmp_path / "pki", hosts=["localhost"], clients=names)
    (tmp_path / "mine.py").write_text(
        "from fedvision.losses.weighting import cross_entropy\n"
        "def loss(counts):\n    return cross_entropy(counts)\n"
    )
    text = EXPERIMENT.format(rounds=1, epochs=1, strategy="fedavg").replace("clients = 2", "clients = 3")
    with machines(tmp_path, tmp_path / "pki", text, names) as here:
        with here.experiment.open("a") as file:
            file.write('[loss]\nuse = "mine:loss"\n')
        server = here.server()
        here.client("north")
        here.client("south", 'plugins = ["mine"]', **speaking(here, PROTOCOL - 1))
        here.client("west", 'plugins = ["mine"]', **speaking(here, PROTOCOL + 1))
        versions = (
            f"the server speaks protocol {PROTOCOL} (fedvision {__version__}) and this client protocol "
        )
        sentences = {
            "north": "use = 'mine:loss': this client allows built-ins",
            "south": f"{versions}{PROTOCOL - 1} (",
            "west": f"{versions}{PROTOCOL + 1} (",
        }
        for name, sentence in sentences.items():
            eventually(lambda name=name, sentence=sentence: sentence in here.log(name), f"{name}'s sentence")
            refusal = re.compile(f"{name} cannot take part: .*{re.escape(sentence)}")
            eventually(lambda refusal=refusal: refusal.search(here.log("server")), f"the server's on {name}")
        assert server.poll() is None, "it waits for clients that can"


def speaking(here: Machines, protocol: int) -> dict[str, str]:
    """Return the environment of a client of another version, older or newer than its server."""
    site = here.folder / f"protocol-{protocol}"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        f"import fedvision.deployment.run_manifest as contract\ncontract.PROTOCOL = {protocol}\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


DRAWING = """
import random

import numpy as np
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.head(F.dropout(images.flatten(1), 0.2) * (1 + np.random.random()))


def loss(counts):
    once = random.random()
    return lambda logits, labels: F.cross_entropy(logits, labels, reduction="none") * (once + random.random())
"""


@pytest.mark.long
def test_plugins_that_draw_end_in_the_simulations_bits(
    tmp_path: Path, pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network and a loss that draw from Python's, NumPy's and torch's global generators."""
    (tmp_path / "drawing.py").write_text(DRAWING)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = EXPERIMENT.format(rounds=2, epochs=1, strategy="fedavg").replace(
        'use = "cnn"\nwidth = 4\ndense = 8\n', 'use = "drawing:Net"\n[loss]\nuse = "drawing:loss"\n'
    )
    with machines(tmp_path, pki, text) as here:
        server = here.server()
        for name in here.names:
            here.client(name, 'plugins = ["drawing"]')
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
        simulated = RunFolder.read(tmp_path / "simulated").rounds()
        assert [record["local"] for record in here.rounds()] == [record["local"] for record in simulated]
        assert [record["refused"] for record in here.rounds()] == [[]] * 2
