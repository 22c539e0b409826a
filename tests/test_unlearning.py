"""Clients are taken out of a model in closed form: what is left has the bits of the others' own model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvision.aggregation.fixed_point import FixedPointSum, to_fixed_point
from fedvision.algorithms.closed_form.heads import FeatureSums
from fedvision.algorithms.closed_form.strategy import ClosedForm
from fedvision.algorithms.snapshot import restore
from fedvision.api import RunResult, simulate
from fedvision.cli.main import main
from fedvision.data.partition.client_shards import ClientShards
from fedvision.errors import ConfigError, FedVisionError, RunFolderError
from fedvision.experiment import Experiment
from fedvision.trained_model import load
from fedvision.training.client_state import ClientStateStore
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import Query, State
from fedvision.unlearning import include, unlearn
from tests.experiments import tiny


def closed(**tables: Any) -> Any:
    base: dict[str, Any] = {
        "rounds": 1,
        "model": {"use": "cnn", "width": 4, "dense": 16, "frozen": ["backbone.*"]},
        "strategy": {"use": "closed-form"},
        "training": {"device": "cpu"},
    }
    return tiny(**base | tables)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Five unlike clients."""
    return simulate(closed(), out=tmp_path_factory.mktemp("five") / "run")


def model_of(clients: Sequence[int], run: RunResult, folder: Path) -> State:
    """Compute the head of some clients with a run's constants, from their images."""
    config = closed()
    built = Experiment.build(config)
    strategy = ClosedForm()
    checkpoint = run.folder.checkpoints.load()
    assert checkpoint is not None
    restore(strategy, checkpoint.tensors["strategy"], checkpoint.values["strategy"])
    trainer = ClientTrainer.open(
        config, built.model, 10, ClientShards(built.dataset.train, built.split), ClientStateStore(folder, 1)
    )
    query, total = Query(use="weighted-products", tensors=strategy.constants), FixedPointSum()
    for client in clients:
        total.add(to_fixed_point(trainer.statistic(client, 1, run.state, query)[0]))
    sums: dict[str, Any] = dict(total.total.numbers)
    return strategy.head_tensors(FeatureSums(weight=strategy.constants["weight"].numpy(), **sums), run.state)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_model_without_a_client_is_that_of_the_others(run: RunResult, tmp_path: Path) -> None:
    before = files(run.folder.path)
    found = unlearn(run.folder.path, [2], out=tmp_path / "without")
    assert not same(found.state, run.state)
    assert same(found.state, model_of([0, 1, 3, 4], run, tmp_path / "memory"))
    assert files(run.folder.path) == before, "the old run stays as it is"
    (record,) = found.rounds
    assert record["strategy"] == run.rounds[0]["strategy"] == {"regularization": 0.3}
    assert (record["clients"], record["unlearned"], record["changed"]) == ([0, 1, 3, 4], [2], True)
    built = Experiment.build(closed())
    counts = np.array(built.split.facts(built.dataset.classes)["counts"])
    assert record["examples"] == int(counts.sum() - counts[2].sum())
    model = load(tmp_path / "without")
    assert model.description.class_counts == tuple((counts.sum(0) - counts[2]).tolist())
    images = Experiment.build(closed()).dataset.test
    assert images is not None
    right = (model.predict(images.images).labels == images.labels).mean()
    assert right == pytest.approx(record["server"]["scores"]["accuracy"])
    assert found.folder.summary()["status"] == "finished"
    assert any("client 2 taken out" in notice for notice in found.folder.summary()["notices"])
    assert (tmp_path / "without/report.html").is_file()


def test_a_client_that_was_not_asked_is_taken_in(run: RunResult, tmp_path: Path) -> None:
    """Three of five clients answered; with the others the bits are those of all five with these constants."""
    part = simulate(closed(strategy={"use": "closed-form", "fraction": 0.6}), out=tmp_path / "part")
    inside = part.rounds[0]["clients"]
    others = sorted(set(range(5)).difference(inside))
    assert len(inside) == 3
    found = include(part.folder.path, others, out=tmp_path / "all")
    assert same(found.state, model_of(range(5), part, tmp_path / "memory"))
    assert (found.rounds[0]["clients"], found.rounds[0]["included"]) == ([0, 1, 2, 3, 4], others)
    back = unlearn(tmp_path / "all", others, out=tmp_path / "back")
    assert same(back.state, part.state)
    with pytest.raises(ConfigError, match=f"client {inside[0]} is in its model already"):
        include(part.folder.path, [inside[0]], out=tmp_path / "again")
    with pytest.raises(ConfigError, match="there is no client 5 in its experiment; name one from 0 to 4"):
        include(part.folder.path, [5], out=tmp_path / "again")


def test_clients_can_be_taken_out_one_after_the_other(run: RunResult, tmp_path: Path) -> None:
    unlearn(run.folder.path, [4], out=tmp_path / "four")
    later = unlearn(tmp_path / "four", [0], out=tmp_path / "both")
    at_once = unlearn(run.folder.path, [0, 4, 4], out=tmp_path / "at-once")
    assert same(later.state, at_once.state)
    assert later.rounds[0]["clients"] == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"client 4 is not in its model; name one of 3 that are"):
        unlearn(tmp_path / "both", [4], out=tmp_path / "again")


@pytest.mark.parametrize(
    ("clients", "message"),
    [([5], "client 5 is not in its model"), ([0, 1, 2, 3, 4], "no client would be left")],
)
def test_impossible_clients_are_refused(
    clients: list[int], message: str, run: RunResult, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        unlearn(run.folder.path, clients, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_runs_are_refused(run: RunResult, tmp_path: Path) -> None:
    simulate(closed(strategy={"use": "fedavg"}), out=tmp_path / "fedavg")
    with pytest.raises(ConfigError, match="its strategy is 'fedavg'"):
        unlearn(tmp_path / "fedavg", [0])
    with pytest.raises(RunFolderError, match="there is no such folder"):
        unlearn(tmp_path / "nowhere", [0])
    with pytest.raises(FedVisionError, match="the folder is not empty"):
        unlearn(run.folder.path, [0], out=tmp_path / "fedavg")


def test_other_images_are_refused(run: RunResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "fedvision.unlearning.old_run.identity", lambda dataset, train: {"training images": "0"}
    )
    with pytest.raises(RunFolderError, match="other training images; restore them"):
        unlearn(run.folder.path, [0], out=tmp_path / "out")


@pytest.mark.slow
def test_the_verb_writes_beside_the_run(
    run: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert main(["unlearn", str(run.folder.path), "--client", "1", "--client", "3", "--out", str(out)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    assert main(["unlearn", str(run.folder.path), "--client", "9"]) == 2
    assert "client 9 is not in its model" in capsys.readouterr().err
