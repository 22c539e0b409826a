"""``model.start``: a run begins with a file's numbers wherever they are needed, or is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedvision.api import RunResult, simulate
from fedvision.config import ExperimentConfig
from fedvision.engines.client_host import SimulatedClientHosts
from fedvision.errors import ConfigError, RunFolderError
from fedvision.experiment import Experiment
from fedvision.models.start import load_start
from fedvision.types import State
from tests.experiments import tiny

BATCH_NORM = {"use": "resnet8", "norm": "batch", "width": 4}


def starting(start: Path, **tables: Any) -> ExperimentConfig:
    return tiny(model={"use": "cnn", "width": 4, "dense": 8, "start": str(start)}, **tables)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return simulate(tiny(rounds=1), out=tmp_path_factory.mktemp("first") / "run")


def test_a_run_begins_where_another_ended(first: RunResult, tmp_path: Path) -> None:
    file = first.folder.path / "model.safetensors"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    initial = Experiment.build(tiny()).model.state_dict()
    for start in (first.folder.path, file):
        experiment = Experiment.build(starting(start))
        assert experiment.start is not None
        assert (experiment.start.sha256, experiment.start.notices) == (sha256, ())
        for name, tensor in first.state.items():
            assert torch.equal(experiment.model.state_dict()[name], tensor)
            assert not torch.equal(initial[name], tensor)
    result = simulate(starting(first.folder.path, rounds=1), out=tmp_path / "second")
    assert result.rounds[0]["train_loss"] < first.rounds[0]["train_loss"]
    assert result.folder.environment()["model.start, sha256"] == sha256
    assert json.loads((tmp_path / "second/model.json").read_text())["model"].get("start", "") == ""


def test_whole_numbers_keep_the_networks_first_values(tmp_path: Path) -> None:
    model = Experiment.build(tiny(model=BATCH_NORM)).model
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "file.safetensors")
    began = Experiment.build(tiny(model={**BATCH_NORM, "start": str(tmp_path / "file.safetensors")})).model
    assert any(name.endswith("num_batches_tracked") for name in state)
    for name, tensor in began.state_dict().items():
        wanted = state[name] if tensor.is_floating_point() else torch.zeros_like(tensor)
        assert torch.equal(tensor, wanted)


def test_a_run_goes_on_with_the_same_file_alone(first: RunResult, tmp_path: Path) -> None:
    save_file(load_file(first.folder.path / "model.safetensors"), tmp_path / "file.safetensors")
    config = starting(tmp_path / "file.safetensors", rounds=2)
    whole = simulate(config, out=tmp_path / "whole")
    simulate(dataclasses.replace(config, rounds=1), out=tmp_path / "run")
    grown = simulate(config, out=tmp_path / "run", resume=True)
    assert all(torch.equal(grown.state[name], tensor) for name, tensor in whole.state.items())
    save_file(whole.state, tmp_path / "file.safetensors")
    with pytest.raises(RunFolderError, match=r"other tensors of model\.start; restore them"):
        simulate(config, out=tmp_path / "run", resume=True)


def test_a_worker_that_builds_the_network_begins_with_the_file(first: RunResult, tmp_path: Path) -> None:
    experiment = Experiment.build(starting(first.folder.path))
    hosts = SimulatedClientHosts(
        config=experiment.config,
        dataset=experiment.dataset,
        split=experiment.split,
        model=experiment.model,
        memory=tmp_path,
    )
    there = object.__new__(SimulatedClientHosts)
    there.__setstate__({name: value for name, value in vars(hosts).items() if name != "model"})
    assert all(torch.equal(there.model.state_dict()[name], tensor) for name, tensor in first.state.items())


def test_across_machines_the_server_alone_has_the_file(first: RunResult) -> None:
    config = starting(first.folder.path)
    server = Experiment.build(config, split_here=False).model.state_dict()
    assert all(torch.equal(server[name], tensor) for name, tensor in first.state.items())
    stays = tiny(model={**BATCH_NORM, "shared": "no-batch-norm-statistics", "start": "anywhere"})
    with pytest.raises(ConfigError, match=r"clients' machines would begin without the file's .*running_mean"):
        Experiment.build(stays, split_here=False)


def without(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "weight"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without, "it lacks tensor 'weight' of the network"),
        (lambda state: {**state, "other": torch.zeros(1)}, "the network has no tensor 'other'"),
        (lambda state: {**state, "bias": torch.zeros(3)}, r"'bias' is \[3\] there and \[2\] in the network"),
        (lambda state: {**state, "bias": torch.tensor([0.0, np.nan])}, "'bias' does not hold finite"),
        (lambda state: {**state, "bias": torch.tensor([0, 1])}, "'bias' does not hold finite floating-point"),
    ],
)
def test_a_file_of_another_network_is_refused(
    change: Callable[[State], State], sentence: str, tmp_path: Path
) -> None:
    network = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    file = tmp_path / "file.safetensors"
    save_file(change(dict(network.state_dict())), file)
    with pytest.raises(ConfigError, match=f"^model.start = '{file}': .*{sentence}"):
        load_start(network, str(file), ["no", "yes"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    (tmp_path / "text").write_text("weights")
    with pytest.raises(ConfigError, match="text is no safetensors file"):
        load_start(network, str(tmp_path / "text"), [])
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read \(No such file"):
        load_start(network, str(tmp_path), [])
    with pytest.raises(
        ConfigError, match="the home folder ~nobody-at-all cannot be found; write the path out"
    ):
        load_start(network, "~nobody-at-all/model.safetensors", [])


def test_the_run_folders_model_description_is_used(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    sha256 = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    facts = {"sha256": sha256, "classes": ["cat", "dog"], "personal": ["bias"]}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    where = f"model.start = '{tmp_path}': "
    assert load_start(network, str(tmp_path), ("dog", "cat")).notices == (
        f"{where}it was trained for the classes cat, dog, and they are dog, cat here",
        f"{where}its run never had bias, which stayed on the clients; they begin with their first values",
    )
    (tmp_path / "model.json").write_text(json.dumps({**facts, "sha256": "0" * 64}))
    with pytest.raises(ConfigError, match=r"is not the file that model\.json beside it describes"):
        load_start(network, str(tmp_path), ("cat", "dog"))
