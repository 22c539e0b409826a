"""Baselines beside real runs: equal bits where they must be equal, budgets, resume, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedvision.api import simulate
from fedvision.baselines import alone
from fedvision.baselines.gains import read_baselines
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, RunError
from fedvision.reporting import pages
from fedvision.reporting.render import run_table
from fedvision.runs.baseline_folder import BaselineFolder
from fedvision.runs.folder import RunFolder
from fedvision.sweep import Sweep
from fedvision.sweep_runner import simulate_sweep
from fedvision.trained_model import load
from fedvision.training import loop
from tests import paused
from tests.experiments import FEDPER, digits_of_several_labels, several_labels, tiny

BOTH = ("local", "central")
ROOT = Path(__file__).parent.parent
HELD = {"holdout": 0.3}
RESNET = {"use": "resnet8", "width": 4, "norm": "batch"}
ONE = {"use": "dirichlet", "clients": 1, "alpha": 0.5, "imbalance": 10}


@pytest.fixture(autouse=True, scope="module")
def no_pages() -> Iterator[None]:
    """Draw no reports, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "page_writer", lambda **options: lambda folder: None)
        yield


def files(folder: Path) -> dict[str, str]:
    """Return the digests of what baselines hold, beside checkpoints."""
    names = [f"{name}/{file}" for name in ("central", "local") for file in ("baseline.json", "clients.jsonl")]
    places = [folder / "baselines" / name for name in [*names, "central/model.safetensors"]]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in places}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines") / "run"
    simulate(tiny(evaluation=HELD), out=folder, baselines=BOTH)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"loss": {"use": "logit-adjusted", "prior": "global"}},
        {"training": {"lr": 0.1, "momentum": 0.9, "steps": 7, "schedule": "cosine"}},
    ],
    ids=["plain", "global-prior", "steps-and-schedule"],
)
def test_of_a_federation_of_one_client_all_three_are_one_model(
    tables: dict[str, Any], tmp_path: Path
) -> None:
    simulate(tiny(partition=ONE, evaluation=HELD, **tables), out=tmp_path / "run", baselines=BOTH)
    folder = RunFolder.read(tmp_path / "run")
    federated = load_file(folder.path / "model.safetensors")
    central = load_file(folder.path / "baselines/central/model.safetensors")
    assert all(torch.equal(central[name], tensor) for name, tensor in federated.items())
    server = folder.rounds()[-1]["server"]
    found = read_baselines(folder)
    assert found is not None
    assert found.central == server
    confusion = np.array(server["confusion"])
    assert found.local[0]["server"]["right"] == confusion.diagonal().tolist()
    assert found.local[0]["server"]["loss"] == server["loss"]
    local = folder.rounds()[-1]["local"]
    assert found.local[0]["local"]["loss"] == local["loss"]
    assert found.held_out["federated"][0] == found.held_out["central"][0] == found.local[0]["local"]


@pytest.mark.slow
def test_the_federated_run_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    simulate(tiny(evaluation=HELD), out=tmp_path / "plain")
    for file in ("model.safetensors", "model.json", "rounds.jsonl", "split.json"):
        assert (run / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


@pytest.mark.slow
def test_what_is_missing_is_added_to_a_finished_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = tiny(evaluation=HELD), tmp_path / "run"
    simulate(config, out=out)
    original, trained = alone.train, list[list[int]]()
    monkeypatch.setattr(alone, "train", lambda *a: trained.append(sorted(a[2])) or original(*a))
    simulate(config, out=out, resume=True, baselines=["central"])
    assert not (out / "baselines/local").exists()
    assert trained == 3 * [[0]]
    simulate(config, out=out, resume=True, baselines=BOTH)
    assert trained[3:] == 3 * [[0, 1, 2, 3, 4]]
    simulate(config, out=out, resume=True, baselines=BOTH)
    assert len(trained) == 6
    assert files(out) == files(run)
    summaries = [json.loads((folder / "summary.json").read_text())["baselines"] for folder in (out, run)]
    assert summaries[0] == summaries[1]
    simulate(config, out=out, resume=True)  # without baselines, the summary still has them
    assert json.loads((out / "summary.json").read_text())["baselines"] == summaries[0]


def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count optimiser steps; what is returned says how many there were since it was last asked."""
    count, original = [0], loop._Step.__call__

    def step(self: loop._Step, *arguments: Any) -> Any:
        count[0] += 1
        return original(self, *arguments)

    monkeypatch.setattr(loop._Step, "__call__", step)

    def since() -> int:
        found, count[0] = count[0], 0
        return found

    return since


@pytest.mark.slow
def test_each_baseline_makes_the_steps_of_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(training={"epochs": 2, "batch_size": 16, "lr": 0.1})
    simulate(config, out=tmp_path / "run")
    trained = steps(monkeypatch)
    simulate(config, out=tmp_path / "again")
    federated = trained()
    sizes = np.array(RunFolder.read(tmp_path / "run").split()["counts"]).sum(1)
    a_round = sum(2 * -(-int(size) // 16) for size in sizes)
    before = federated - 3 * a_round  # while the experiment is checked
    simulate(config, out=tmp_path / "run", resume=True, baselines=["local"])
    assert trained() - before == 3 * a_round
    simulate(config, out=tmp_path / "run", resume=True, baselines=["central"])
    assert trained() - before == 3 * 2 * -(-int(sizes.sum()) // 16)


@pytest.mark.slow
def test_clients_drawn_now_and_then_train_in_their_share_of_the_rounds(tmp_path: Path) -> None:
    config = tiny(rounds=5, strategy={"use": "fedavg", "fraction": 0.4})
    simulate(config, out=tmp_path / "run", baselines=BOTH)
    summary = json.loads((tmp_path / "run/summary.json").read_text())["baselines"]
    records = RunFolder.read(tmp_path / "run").rounds()
    times = sum(record["examples"] for record in records) / sum(summary_images(tmp_path / "run"))
    assert len(summary["budgets"]["local"]["rounds"]) == round(times)
    assert summary["budgets"]["central"]["rounds"] == summary["budgets"]["local"]["rounds"]


def summary_images(folder: Path) -> list[int]:
    return [int(line["images"]) for line in BaselineFolder(folder, "local").clients().values()]


@pytest.mark.slow
@pytest.mark.parametrize("saves", [1, 3, 4, 5, 7])
def test_a_baseline_that_was_stopped_goes_on_to_the_same_bits(
    saves: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Central is saved thrice, and when it is measured; then comes local, in groups of two clients."""
    config, original = tiny(evaluation=HELD), alone.LoneTraining._save
    monkeypatch.setattr(alone, "GROUP", 2)
    left = [saves]

    def save(self: alone.LoneTraining, *arguments: Any) -> None:
        original(self, *arguments)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(alone.LoneTraining, "_save", save)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, out=tmp_path / "run", baselines=BOTH)
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"
    rounds = alone.train
    trained = list[int]()
    monkeypatch.setattr(alone, "train", lambda *a: trained.append(len(a[2])) or rounds(*a))
    simulate(config, out=tmp_path / "run", resume=True, baselines=BOTH)
    assert files(tmp_path / "run") == files(run)
    done = {1: 1, 3: 3, 4: 3, 5: 3 + 2, 7: 3 + 3 * 2}[saves]  # clients' trainings that were not lost
    assert sum(trained) == 3 + 3 * 5 - done


@pytest.mark.slow
def test_what_was_appended_before_a_kill_is_not_there_twice(run: Path, tmp_path: Path) -> None:
    config = tiny(evaluation=HELD)
    simulate(config, out=tmp_path / "run", baselines=["central"])
    place = BaselineFolder(tmp_path / "run", "local")
    facts = BaselineFolder(run, "local").facts()["of"]
    place.begin(facts)
    place.append({"client": 4, "loss": -1.0})  # its group's checkpoint was not written
    simulate(config, out=tmp_path / "run", resume=True, baselines=["local"])
    assert files(tmp_path / "run") == files(run)


@pytest.mark.slow
def test_more_rounds_make_baselines_anew(tmp_path: Path) -> None:
    simulate(tiny(), out=tmp_path / "run", baselines=BOTH)
    before = files(tmp_path / "run")
    simulate(tiny(rounds=4), out=tmp_path / "run", resume=True, baselines=BOTH)
    simulate(tiny(rounds=4), out=tmp_path / "whole", baselines=BOTH)
    assert files(tmp_path / "run") == files(tmp_path / "whole") != before
    assert "made anew" in (tmp_path / "run/events.jsonl").read_text()


def test_the_central_model_is_used_as_any_other(run: Path) -> None:
    central = load(run / "baselines/central")
    assert central.description.rounds == 3
    assert len(central.predict(np.zeros((2, 8, 8, 1), np.uint8)).labels) == 2


@pytest.mark.slow
def test_who_fails_alone_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = alone.train

    def train(*arguments: Any) -> Any:
        states, round = arguments[2], arguments[3]
        found, failed = original(*arguments)
        if round == 2 and 1 in states:
            del found[1]
            failed[1] = "its disk is full"
        return found, failed

    monkeypatch.setattr(alone, "train", train)
    simulate(tiny(), out=tmp_path / "run", baselines=["local"])
    folder = RunFolder.read(tmp_path / "run")
    found = read_baselines(folder)
    assert found is not None
    assert (sorted(found.local), found.failed) == ([0, 2, 3, 4], {1: "its disk is full"})
    assert "1 client could not be trained alone: its disk is full." in " ".join(run_table(folder).split())


@pytest.mark.slow
def test_nobody_trained_alone_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "train", lambda *arguments: ({}, dict.fromkeys(arguments[2], "no power")))
    with pytest.raises(RunError, match="no client could be trained alone: no power"):
        simulate(tiny(), out=tmp_path / "run", baselines=["local"])
    with pytest.raises(RunError, match="the baseline central could not be trained: no power"):
        simulate(tiny(), out=tmp_path / "run", resume=True, baselines=["central"])


@pytest.mark.slow
def test_several_labels_are_compared_by_their_score(tmp_path: Path) -> None:
    tables = several_labels(digits_of_several_labels(tmp_path))
    config = tiny(partition={"use": "iid", "clients": 3}, evaluation=HELD, **tables)
    simulate(config, out=tmp_path / "run", baselines=BOTH)
    gains = json.loads((tmp_path / "run/summary.json").read_text())["baselines"]["gains"]
    assert gains["test"]["score"] == gains["held_out"]["score"] == "mean_ap"
    assert gains["test"]["clients"] == 3


@pytest.mark.slow
def test_what_belongs_to_a_federation_does_not_change_baselines(run: Path, tmp_path: Path) -> None:
    config = tiny(
        evaluation=HELD,
        strategy={"use": "scaffold"},
        update=[{"use": "top-k", "fraction": 0.1}],
        clock={"seconds_per_image": 0.1},
        round={"min_clients": 5, "norm_limit": 0.0},
    )
    simulate(config, out=tmp_path / "run", baselines=BOTH)
    ours, theirs = files(tmp_path / "run"), files(run)
    kept = [name for name in ours if not name.endswith("baseline.json")]
    assert {name: ours[name] for name in kept} == {name: theirs[name] for name in kept}


@pytest.mark.slow
def test_of_a_population_a_sample_is_trained_alone(tmp_path: Path) -> None:
    partition = {"use": "population", "clients": 10_001, "alpha": 0.3, "mean_images": 8.0}
    strategy = {"use": "fedavg", "fraction": 0.001}
    simulate(tiny(rounds=2, partition=partition, strategy=strategy), out=tmp_path / "run", baselines=BOTH)
    split = RunFolder.read(tmp_path / "run").split()
    assert sorted(BaselineFolder(tmp_path / "run", "local").clients()) == split["shown"]
    table = " ".join(run_table(RunFolder.read(tmp_path / "run")).split())
    assert "Of 10,001 clients, 100 drawn at random were trained alone." in table


@pytest.mark.parametrize(
    ("config", "names", "expected"),
    [
        (tiny(), ["locl"], "no baseline 'locl'"),
        (
            tiny(strategy={"use": "closed-form"}, model={"use": "cnn", "train": "head"}),
            BOTH,
            "trains nothing",
        ),
        (tiny(**FEDPER, evaluation=HELD), BOTH, "with model.personal tensors stay on the clients"),
        (
            tiny(strategy={"use": "fedrep"}, evaluation=HELD),
            BOTH,
            "use = 'fedrep' tensors stay on the clients",
        ),
        (tiny(model={**RESNET, "shared": "no-batch-norm-statistics"}), BOTH, "model.shared = "),
        (tiny(model={**RESNET, "shared": "trainable"}), BOTH, "model.shared = 'trainable'"),
    ],
    ids=["unknown", "closed-form", "personal", "fedrep", "silo-bn", "trainable"],
)
def test_what_has_no_baseline_is_refused_before_anything_is_written(
    config: ExperimentConfig, names: list[str], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=expected):
        simulate(config, out=tmp_path / "run", baselines=names)
    assert not (tmp_path / "run").exists()


def test_a_sweep_is_refused_before_its_first_run(tmp_path: Path) -> None:
    sweep = Sweep(name="two", experiments={"good": tiny(), "bad": tiny(strategy={"use": "closed-form"})})
    with pytest.raises(ConfigError, match="trains nothing"):
        simulate_sweep(sweep, out=tmp_path / "runs", baselines=BOTH)
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_process_struck_while_it_makes_baselines_goes_on_to_the_same_bits(
    blow: signal.Signals, tmp_path: Path
) -> None:
    """It is struck once when central is being made, and once when local is."""
    loss = {"use": "tests.paused:PausedCrossEntropy"}
    config = tiny(rounds=40, loss=loss, evaluation={"holdout": 0.3, "every": 40})
    (tmp_path / "small.toml").write_text(config.to_toml())
    simulate(config, out=tmp_path / "whole", baselines=BOTH)
    out = tmp_path / "struck"
    command = [sys.executable, "-m", "fedvision.cli.main", "simulate", str(tmp_path / "small.toml")]
    command += ["--out", str(out), "--resume", "--engine", "serial", "--baselines", "local,central"]
    for name in ("central", "local"):
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {paused.SECONDS: "0.01"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            latest = out / "baselines" / name / "checkpoint/latest.json"
            while not latest.exists() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(blow)
            assert process.wait() != 0
        assert BaselineFolder(out, name).facts()["status"] == "begun"
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.slow
def test_workers_make_the_same_bits(run: Path, tmp_path: Path) -> None:
    from fedvision.types import PluginSpec

    ray = PluginSpec(use="ray", args={"workers": 2})
    simulate(tiny(evaluation=HELD), engine=ray, out=tmp_path / "run", baselines=BOTH)
    assert files(tmp_path / "run") == files(run)


@pytest.mark.slow
def test_the_vectorized_engine_trains_lone_clients_in_a_stack(run: Path, tmp_path: Path) -> None:
    simulate(tiny(evaluation=HELD), engine="vectorized", out=tmp_path / "run", baselines=["local"])
    ours, theirs = (BaselineFolder(folder, "local").clients() for folder in (tmp_path / "run", run))
    assert [ours[client]["loss"] for client in range(5)] == pytest.approx(
        [theirs[client]["loss"] for client in range(5)], rel=1e-4
    )
