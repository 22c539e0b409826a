"""Sums that come in files from clients' machines: the bits of clients that are simulated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fedvision.api import RunResult, simulate
from fedvision.cli.main import main
from fedvision.config import ExperimentConfig
from fedvision.data.image_counts import ImageCounts
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.own_sums import write_sums
from fedvision.deployment.sums_files import ClientSums, SumsRequest
from fedvision.errors import ConfigError, FedVisionError, RunError
from fedvision.experiment import Experiment
from fedvision.runs.member_register import MemberRegister
from fedvision.trained_model import load
from fedvision.unlearning import include, request_sums, unlearn
from tests.experiments import tiny

NAMES = ("north", "south", "west")


def closed(expand: bool = False, **tables: Any) -> ExperimentConfig:
    model: dict[str, Any] = {"use": "cnn", "width": 4, "dense": 16, "frozen": ["backbone.*"]}
    base: dict[str, Any] = {
        "rounds": 1,
        "partition": {"use": "dirichlet", "clients": 3, "alpha": 0.5},
        "model": model | ({"expand": {"use": "random-relu", "features": 30}} if expand else {}),
        "strategy": {"use": "closed-form"},
        "training": {"device": "cpu"},
        "evaluation": {"holdout": 0.2},
    }
    return tiny(**base | tables)


class Machines:
    """A run folder as a server leaves it, beside the simulation with the same bits, and its clients."""

    def __init__(self, folder: Path, config: ExperimentConfig) -> None:
        self.folder, self.config = folder, config
        self.simulated: RunResult = simulate(config, out=folder / "simulated")
        self.run = folder / "run"
        shutil.copytree(self.simulated.folder.path, self.run)
        (self.run / "deployment.json").write_text(json.dumps({"run": "r1"}))
        register = MemberRegister(self.run / "members.jsonl")
        built = Experiment.build(config)
        train, self.classes = built.dataset.train, built.dataset.classes
        for client, name in enumerate(NAMES):
            own = np.union1d(built.split.clients[client], built.split.test(client))
            np.savez(folder / f"{name}.npz", train_images=train.images[own], train_labels=train.labels[own])
            register.joined(client, name, "key", node=client + 1, sharing="plain")
            counts = np.bincount(train.labels[built.split.clients[client]], minlength=10)
            register.add_counts(client, ImageCounts(counts=tuple(counts.tolist()), images=int(counts.sum())))
        facts = json.loads((self.run / "split.json").read_text())
        facts["totals"] = np.sum(facts["counts"], 0).tolist()
        (self.run / "split.json").write_text(json.dumps(facts))

    def client(self, name: str, **tables: Any) -> ClientMachineConfig:
        """Return a client's own file."""
        images = {"use": "npz", "path": str(self.folder / f"{name}.npz"), "classes": list(self.classes)}
        base: dict[str, Any] = {
            "name": name,
            "superlink": {"address": "localhost:1", "key": "k", "root_certificate": "r"},
            "data": images,
            "share": {"counts": "plain", "statistics": ["feature-sums", "weighted-products"]},
            "state": str(self.folder / f"state-{name}"),
        }
        return ClientMachineConfig.from_dict(base | tables)

    def sums(self, name: str, run: Path | None = None, **tables: Any) -> Path:
        """Let a client answer a request for its sums."""
        request = request_sums(run or self.run, name, out=self.folder / "request.safetensors")
        out = self.folder / f"sums-{name}.safetensors"
        write_sums(self.client(name, **tables), self.folder, request, out)
        return out


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "expanded"])
def machines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machines:
    return Machines(tmp_path_factory.mktemp("machines"), closed(request.param))


def same(one: RunResult, other: RunResult) -> bool:
    return one.state.keys() == other.state.keys() and all(
        torch.equal(one.state[name], other.state[name]) for name in one.state
    )


@pytest.mark.slow
def test_a_client_is_taken_out_and_in_again(machines: Machines, tmp_path: Path) -> None:
    """As in the simulation, to the bit, and two clients one after the other or both at once."""
    wanted = unlearn(machines.simulated.folder.path, [1], out=tmp_path / "wanted")
    assert not same(wanted, machines.simulated)
    south = machines.sums("south")
    found = unlearn(machines.run, sums=[south], out=tmp_path / "without")
    assert same(found, wanted)
    (record,), (theirs,) = found.rounds, wanted.rounds
    assert {**record, "bytes": 0} == {**theirs, "bytes": 0}
    assert any("client south taken out" in notice for notice in found.folder.summary()["notices"])
    assert found.folder.members().names == dict(enumerate(NAMES))
    described = load(tmp_path / "without").description
    assert described.class_counts == load(tmp_path / "wanted").description.class_counts
    assert same(include(tmp_path / "without", sums=[south], out=tmp_path / "back"), machines.simulated)
    north = machines.sums("north", run=tmp_path / "without")
    assert north.read_bytes() == machines.sums("north").read_bytes(), "the constants are the same"
    one_by_one = unlearn(tmp_path / "without", sums=[north], out=tmp_path / "one-by-one")
    at_once = unlearn(machines.run, sums=[north, south], out=tmp_path / "at-once")
    assert same(one_by_one, at_once)
    assert one_by_one.rounds[0]["clients"] == [2]


def test_a_request_has_neither_head_nor_images(machines: Machines) -> None:
    path = request_sums(machines.run, "1")
    assert path == machines.folder / "run-request-south.safetensors"
    found = SumsRequest.read(path)
    assert (found.client, found.name, found.manifest.run) == (1, "south", "r1")
    assert found.model == {}
    assert {"mean", "deviation", "weight"} <= found.query.keys()
    assert found.to_bytes() == path.read_bytes()


@pytest.mark.slow
def test_sums_for_another_run_or_client_are_refused(machines: Machines, tmp_path: Path) -> None:
    south = machines.sums("south")
    answer = ClientSums.read(south)

    def written(**facts: Any) -> Path:
        other = ClientSums(**{**vars(answer), **facts})
        file = tmp_path / f"sums-{len(list(tmp_path.iterdir()))}.safetensors"
        file.write_bytes(other.to_bytes())
        return file

    for file, message in (
        (written(request="0" * 64), "answers the request of another run, or of other constants"),
        (written(client=0, name="north"), "answers the request of another run, or of other constants"),
        (written(client=2), "client south is none of"),
        (written(client=7, name="east"), "client east is none of"),
    ):
        with pytest.raises(ConfigError, match=message):
            unlearn(machines.run, sums=[file], out=tmp_path / "out")
    fewer = answer.sums | {"count": answer.sums["count"] - (answer.sums["count"] > 0).long()}
    with pytest.raises(ConfigError, match="over other images than it reported to the run"):
        unlearn(machines.run, sums=[written(sums=fewer)], out=tmp_path / "out")
    shorter = answer.sums | {"product": answer.sums["product"][:-1]}
    with pytest.raises(RunError, match="client south: its sums have other names or shapes"):
        unlearn(machines.run, sums=[written(sums=shorter)], out=tmp_path / "shapes")
    with pytest.raises(ConfigError, match="client south is named twice"):
        unlearn(machines.run, sums=[south, south], out=tmp_path / "out")
    with pytest.raises(ConfigError, match="client 1 is in its model already"):
        include(machines.run, sums=[south], out=tmp_path / "out")
    with pytest.raises(ConfigError, match="no client would be left"):
        unlearn(machines.run, sums=[machines.sums(name) for name in NAMES], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_refused(machines: Machines, tmp_path: Path) -> None:
    request = request_sums(machines.run, "south", out=tmp_path / "request.safetensors")
    with pytest.raises(ConfigError, match="this is a request for sums, not a sums of a client"):
        unlearn(machines.run, sums=[request], out=tmp_path / "out")
    south = machines.sums("south")
    for size in (0, 7, 200, south.stat().st_size - 1):
        (tmp_path / "part").write_bytes(south.read_bytes()[:size])
        with pytest.raises(ConfigError, match="no file with a sums of a client, or it is damaged"):
            unlearn(machines.run, sums=[tmp_path / "part"], out=tmp_path / "out")
    answer = ClientSums.read(south)
    real = ClientSums(**{**vars(answer), "sums": {k: t.double() for k, t in answer.sums.items()}})
    (tmp_path / "real").write_bytes(real.to_bytes())
    with pytest.raises(ConfigError, match="does not hold a client's sums as whole numbers"):
        unlearn(machines.run, sums=[tmp_path / "real"], out=tmp_path / "out")
    with pytest.raises(ConfigError, match="it cannot be read: No such file"):
        unlearn(machines.run, sums=[tmp_path / "nowhere"], out=tmp_path / "out")


@pytest.mark.parametrize(
    "facts",
    [
        "{}",
        '{"client": null, "name": "south", "request": ""}',
        '{"client": 1e999, "name": "south", "request": ""}',
        "[" * 100_000,
    ],
    ids=["nothing", "nobody", "infinite", "deep"],
)
def test_files_that_do_not_say_whose_they_are_are_refused(facts: str, tmp_path: Path) -> None:
    """Whoever writes a file may write anything into it."""
    sums = {name: torch.zeros(1, dtype=torch.int64) for name in ("count", "sum", "product")}
    for kind, read in {"sums of a client": ClientSums.read, "request for sums": SumsRequest.read}.items():
        told = facts.replace("{", f'{{"kind": "{kind}", ', 1).replace(", }", "}")
        (tmp_path / "file").write_bytes(save(sums, {"fedvision": told}))
        with pytest.raises(ConfigError, match=r"does not say whose|incomplete|or it is damaged") as caught:
            read(tmp_path / "file")
        assert "\n" not in str(caught.value)


def test_a_client_answers_only_what_its_owner_allows(machines: Machines, tmp_path: Path) -> None:
    request = request_sums(machines.run, "south", out=tmp_path / "request.safetensors")
    out = tmp_path / "sums.safetensors"
    with pytest.raises(ConfigError, match="asks for the sums of client south, and this machine is north"):
        write_sums(machines.client("north"), machines.folder, request, out)
    share = {"counts": "plain", "statistics": ["feature-sums"]}
    with pytest.raises(ConfigError, match=r"adds its name to share\.statistics"):
        write_sums(machines.client("south", share=share), machines.folder, request, out)
    state = tmp_path / "state"
    (state / "runs/r1").mkdir(parents=True)
    (state / "runs/r1/images").write_text("a stamp of images that are gone")
    with pytest.raises(FedVisionError, match="images are not those that it reported to the run"):
        write_sums(machines.client("south", state=str(state)), machines.folder, request, out)
    assert not out.exists()


def test_the_other_kind_of_run_is_named_otherwise(machines: Machines, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="let `fedvision request-sums` and, there, `fedvision sums` write"):
        unlearn(machines.run, [1], out=tmp_path / "out")
    with pytest.raises(ConfigError, match="its clients are simulated here; name them with --client"):
        unlearn(machines.simulated.folder.path, sums=[tmp_path / "x"], out=tmp_path / "out")
    with pytest.raises(ConfigError, match="its clients are simulated here, and nobody needs to be asked"):
        request_sums(machines.simulated.folder.path, "1")
    with pytest.raises(ConfigError, match="no client 'east' in its register; name one of north, south, west"):
        request_sums(machines.run, "east")


@pytest.mark.slow
def test_the_verbs(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = machines.client("west").to_toml()
    (tmp_path / "west.toml").write_text(own)
    assert main(["request-sums", str(machines.run), "--client", "west", "--out", "request"]) == 0
    assert main(["sums", "west.toml", "request"]) == 0
    assert "they show this machine's own sums" in capsys.readouterr().out
    found = ["--sums", "sums-west.safetensors", "--out", "new"]
    assert main(["unlearn", str(machines.run), *found]) == 0
    assert (tmp_path / "new/report.html").is_file()
