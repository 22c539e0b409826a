"""``model.weights``: a run begins with a file's numbers wherever they are needed, or is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedvision.api import RunResult, simulate
from fedvision.config import ExperimentConfig, ModelConfig
from fedvision.engines.client_host import SimulatedClientHosts
from fedvision.errors import ConfigError, RunFolderError
from fedvision.experiment import Experiment
from fedvision.models import weights_file
from fedvision.models.base import ImageModel
from fedvision.models.weights import LoadedWeights, load_weights
from fedvision.types import State
from tests.experiments import tiny

BATCH_NORM = {"use": "resnet8", "norm": "batch", "width": 4}


def load(network: nn.Module, weights: str, classes: Sequence[str]) -> LoadedWeights:
    return load_weights(network, weights_file.read(ModelConfig(weights=weights)), classes)


def beginning(weights: Path, **tables: Any) -> ExperimentConfig:
    return tiny(model={"use": "cnn", "width": 4, "dense": 8, "weights": str(weights)}, **tables)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return simulate(tiny(rounds=1), out=tmp_path_factory.mktemp("first") / "run")


def test_a_run_begins_where_another_ended(first: RunResult, tmp_path: Path) -> None:
    file = first.folder.path / "model.safetensors"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    initial = Experiment.build(tiny()).model.state_dict()
    for weights in (first.folder.path, file):
        experiment = Experiment.build(beginning(weights))
        assert experiment.weights is not None
        assert (experiment.weights.files, experiment.weights.notices) == ({"": sha256}, ())
        for name, tensor in first.state.items():
            assert torch.equal(experiment.model.state_dict()[name], tensor)
            assert not torch.equal(initial[name], tensor)
    result = simulate(beginning(first.folder.path, rounds=1), out=tmp_path / "second")
    assert result.rounds[0]["train_loss"] < first.rounds[0]["train_loss"]
    assert result.folder.environment()["model.weights, sha256"] == sha256
    assert json.loads((tmp_path / "second/model.json").read_text())["model"]["weights"] == ""


def test_whole_numbers_keep_the_networks_first_values(tmp_path: Path) -> None:
    model = Experiment.build(tiny(model=BATCH_NORM)).model
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "file.safetensors")
    began = Experiment.build(tiny(model={**BATCH_NORM, "weights": str(tmp_path / "file.safetensors")})).model
    assert any(name.endswith("num_batches_tracked") for name in state)
    for name, tensor in began.state_dict().items():
        wanted = state[name] if tensor.is_floating_point() else torch.zeros_like(tensor)
        assert torch.equal(tensor, wanted)


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_file_alone(first: RunResult, tmp_path: Path) -> None:
    save_file(load_file(first.folder.path / "model.safetensors"), tmp_path / "file.safetensors")
    config = beginning(tmp_path / "file.safetensors", rounds=2)
    whole = simulate(config, out=tmp_path / "whole")
    simulate(dataclasses.replace(config, rounds=1), out=tmp_path / "run")
    grown = simulate(config, out=tmp_path / "run", resume=True)
    assert all(torch.equal(grown.state[name], tensor) for name, tensor in whole.state.items())
    save_file(whole.state, tmp_path / "file.safetensors")
    with pytest.raises(RunFolderError, match=r"other tensors of model\.weights; restore them"):
        simulate(config, out=tmp_path / "run", resume=True)


def test_a_worker_that_builds_the_network_begins_with_the_file(first: RunResult, tmp_path: Path) -> None:
    experiment = Experiment.build(beginning(first.folder.path))
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


def test_across_machines_clients_need_the_file_only_where_not_all_is_sent(first: RunResult) -> None:
    config = beginning(first.folder.path)
    server = Experiment.build(config, split_here=False)
    assert all(torch.equal(server.model.state_dict()[name], t) for name, t in first.state.items())
    assert server.notices() == []
    kept = dataclasses.replace(
        config, model=dataclasses.replace(config.model, frozen=("backbone.features.*",))
    )
    (sentence,) = Experiment.build(kept, split_here=False).notices()
    assert server.weights is not None
    assert (
        f"(SHA-256 {server.weights.files[''][:12]}...), named as weights in [model] of its file" in sentence
    )
    plain = dataclasses.replace(kept, model=dataclasses.replace(kept.model, weights=""))
    assert Experiment.build(plain, split_here=False).notices() == []


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
    with pytest.raises(ConfigError, match=f"^model.weights = '{file}': .*{sentence}"):
        load(network, str(file), ["no", "yes"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    for name in ("text", "text.safetensors"):
        (tmp_path / name).write_text("weights")
    with pytest.raises(
        ConfigError, match=r"text is no whole file of torch\.save|neither a safetensors file nor"
    ):
        load(network, str(tmp_path / "text"), [])
    with pytest.raises(ConfigError, match=r"text\.safetensors is a damaged safetensors file"):
        load(network, str(tmp_path / "text.safetensors"), [])
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read \(No such file"):
        load(network, str(tmp_path), [])
    with pytest.raises(
        ConfigError, match="the home folder ~nobody-at-all cannot be found; write the path out"
    ):
        load(network, "~nobody-at-all/model.safetensors", [])


def test_the_run_folders_model_description_is_used(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    sha256 = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    facts = {"sha256": sha256, "classes": ["cat", "dog"], "personal": ["bias"]}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    where = f"model.weights = '{tmp_path}': "
    assert load(network, str(tmp_path), ("dog", "cat")).notices == (
        f"{where}it was trained for the classes cat, dog, and they are dog, cat here",
        f"{where}its run never had bias, which stayed on the clients; they begin with their first values",
    )
    (tmp_path / "model.json").write_text(json.dumps({**facts, "sha256": "0" * 64}))
    with pytest.raises(ConfigError, match=r"is not the file that model\.json beside it describes"):
        load(network, str(tmp_path), ("cat", "dog"))


def small(outputs: int = 2, features: int = 3) -> ImageModel:
    return ImageModel(nn.Linear(4, features), nn.Linear(features, outputs))


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_of_torch_begins_a_network(nested: str | None, prefix: str, tmp_path: Path) -> None:
    given = small()
    state = {prefix + name: tensor for name, tensor in given.state_dict().items()}
    file = tmp_path / "file.pth"
    torch.save({nested: state, "epoch": 3} if nested else state, file)
    own = small()
    found = load(own, str(file), ["no", "yes"])
    assert (found.files[""], found.notices) == (hashlib.sha256(file.read_bytes()).hexdigest(), ())
    assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in given.state_dict().items())


class Code:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_what_is_no_state_dict_is_refused_and_no_code_in_it_runs(tmp_path: Path) -> None:
    trace, whole = tmp_path / "trace", io.BytesIO()
    torch.save(small().state_dict(), whole)
    contents: dict[str, Any] = {
        "with tensors alone; code and other objects in a file are not read": Code(trace),
        r"holds state dicts under state_dict, model; save the one that is meant": {
            key: small().state_dict() for key in ("state_dict", "model")
        },
        "'epoch' in .* is no tensor, but of type int": {**small().state_dict(), "epoch": 3},
        "holds no tensors by name, but a value of type list": [torch.zeros(2)],
    }
    for sentence, content in contents.items():
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(ConfigError, match=sentence):
            load(small(), str(tmp_path / "file.pth"), [])
    (tmp_path / "file.pth").write_bytes(pickle.dumps(Code(trace)))  # not by torch.save, which warns of it
    with pytest.raises(ConfigError, match="code and other objects in a file are not read"):
        load(small(), str(tmp_path / "file.pth"), [])
    for size in (0, 10, len(whole.getvalue()) - 30):
        (tmp_path / "file.pth").write_bytes(whole.getvalue()[:size])
        with pytest.raises(ConfigError, match=r"file\.pth is no whole file of torch\.save"):
            load(small(), str(tmp_path / "file.pth"), [])
    assert not trace.exists()


def test_a_head_for_other_classes_begins_anew(tmp_path: Path) -> None:
    given = small(outputs=7)
    save_file(given.state_dict(), tmp_path / "whole.safetensors")
    save_file(
        {name: t for name, t in given.state_dict().items() if name.startswith("backbone.")},
        tmp_path / "backbone.safetensors",
    )
    for name, sentence in {
        "whole": "its head has 7 outputs and the network's 2, so the head begins with its first values",
        "backbone": "it has no head, so the network's head begins with its first values",
    }.items():
        file, own = tmp_path / f"{name}.safetensors", small()
        before = {key: tensor.clone() for key, tensor in own.head.state_dict().items()}
        found = load(own, str(file), ["no", "yes"])
        assert found.notices == (f"model.weights = '{file}': {sentence}",)
        assert all(torch.equal(own.head.state_dict()[key], tensor) for key, tensor in before.items())
        assert torch.equal(own.backbone.state_dict()["weight"], given.backbone.state_dict()["weight"])


def test_a_head_of_other_features_or_in_part_is_refused(tmp_path: Path) -> None:
    for given, sentence in (
        (small(features=5).state_dict(), "'backbone.weight' is"),
        ({**small().state_dict(), "head.weight": torch.zeros(7, 9)}, "'head.weight' is"),
        (
            {name: t for name, t in small().state_dict().items() if name != "head.bias"},
            "it lacks tensor 'head.bias'",
        ),
        ({**small().state_dict(), "head.more": torch.zeros(2)}, "no tensor 'head.more'"),
    ):
        save_file(given, tmp_path / "file.safetensors")
        with pytest.raises(ConfigError, match=sentence):
            load(small(), str(tmp_path / "file.safetensors"), [])
