"""A client begins with a copy of the weights, the server's to the byte, or is refused before it trains."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedvision.config import ExperimentConfig
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.doctor import run_check
from fedvision.deployment.client.local_data import open_own
from fedvision.deployment.client.own_weights import check_weights
from fedvision.deployment.client.redaction import redact_paths
from fedvision.deployment.client.trainer import Trainer
from fedvision.deployment.run_manifest import RunManifest
from fedvision.deployment.server.deployment import manifest_of
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.models.freezing import frozen_state
from fedvision.models.state import digest
from tests.experiments import tiny

SMALL: dict[str, Any] = {"use": "cnn", "width": 4, "dense": 8}
CLASSES = tuple("0123456789")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a file of other numbers than the seed draws."""
    state = Experiment.build(tiny(model=SMALL, seed=8)).model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def experiment(weights: Path, **model: Any) -> ExperimentConfig:
    """Return the server's experiment, whose path is not one of the client's."""
    return tiny(
        model={**SMALL, "train": "head", "weights": str(weights), **model},
        transforms={"mean": [0.5], "std": [0.25], "interpolation": "bilinear"},
    )


def client(folder: Path, own: str = "", **parts: str) -> ClientMachineConfig:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, 8, 8), np.uint8)
    np.savez(folder / "own.npz", train_images=images, train_labels=np.arange(40) % 10)
    return ClientMachineConfig.from_dict(
        {
            "name": "north",
            "superlink": {"address": "localhost:1", "key": "k"},
            "data": {"use": "npz", "path": str(folder / "own.npz"), "classes": list(CLASSES)},
            "state": str(folder / "state"),
            "model": {"weights": own, "parts": parts},
        }
    )


def manifest(config: ExperimentConfig, server: Path) -> dict[str, Any]:
    """Return what the server sends of a run that begins with its file."""
    built = Experiment.build(
        dataclasses.replace(config, model=dataclasses.replace(config.model, weights=str(server)))
    )
    assert built.weights is not None
    travels = built.config.to_toml().replace(str(server), "/on/the/server")
    return RunManifest(
        run="r1",
        experiment=travels,
        classes=CLASSES,
        image=(8, 8, 1),
        frozen=digest(frozen_state(built.model)),
        weights=built.weights.files,
    ).to_table()


def test_a_client_begins_with_its_own_copy(weights: Path, tmp_path: Path) -> None:
    trainer = Trainer(client(tmp_path, str(weights)), tmp_path)
    opened = trainer.open(manifest(experiment(weights), weights))
    assert "train" in opened["expected"]
    assert trainer._worker is not None
    given = load_file(weights)
    for name, tensor in trainer._worker.model.state_dict().items():
        assert torch.equal(tensor.contiguous(), given[name])


@pytest.mark.parametrize("own", ["", "other", "absent", "damaged"])
def test_another_file_or_none_is_one_sentence_before_training(
    own: str, weights: Path, tmp_path: Path
) -> None:
    table = manifest(experiment(weights), weights)
    file = tmp_path / "own.safetensors"
    if own == "other":
        save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, file)
    if own == "damaged":
        file.write_bytes(weights.read_bytes()[:200])
    config = client(tmp_path, str(file) if own else "")
    with pytest.raises(ConfigError) as caught:
        Trainer(config, tmp_path).open(table)
    sentences = {
        "": "put a copy of the server's file here and name it as weights in [model] of the client's file",
        "other": f"and the server's has {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}...; copy the",
        "absent": "cannot be read (No such file or directory)",
        "damaged": "is a damaged safetensors file",
    }
    assert sentences[own] in str(caught.value)
    # What holds no path is what the server shows.
    assert (redact_paths(str(caught.value), config) == str(caught.value)) == (own in ("", "other"))


def test_nothing_is_needed_where_all_of_the_network_is_sent(weights: Path, tmp_path: Path) -> None:
    table = manifest(experiment(weights, train="all"), weights) | {"weights": "{}"}
    Trainer(client(tmp_path), tmp_path).open(table)


def test_a_path_of_the_server_names_nothing_here(weights: Path, tmp_path: Path) -> None:
    """The server's ``model.weights`` is the path of a file that this machine has as well."""
    table = manifest(experiment(weights), weights)
    table["experiment"] = table["experiment"].replace("/on/the/server", str(weights))
    table["digest"] = hashlib.sha256(table["experiment"].encode()).hexdigest()
    with pytest.raises(ConfigError, match=r"name it as weights in \[model\] of the client's file"):
        Trainer(client(tmp_path), tmp_path).open(table)


def lines(config: ClientMachineConfig, experiment: ExperimentConfig) -> list[tuple[str, str]]:
    return list(check_weights(config, open_own(config), experiment))


def test_the_doctor_checks_that_the_file_fits(weights: Path, tmp_path: Path) -> None:
    own, none = client(tmp_path, str(weights)), client(tmp_path)
    ((level, text),) = lines(own, experiment(weights))
    assert (level, text) == (
        "OK",
        f"weights of SHA-256 {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}... fit the network; the "
        "server's must be the same",
    )
    ((level, text),) = lines(none, experiment(weights))
    assert level == "FAIL"
    assert "name it as weights in [model] of the client's file" in text
    assert lines(none, experiment(weights, train="all")) == [
        ("OK", "the server sends all that the network begins with")
    ]
    assert lines(own, tiny(model=SMALL)) == []
    with pytest.raises(ConfigError, match=r"'backbone.*' is .* there and .* in the network"):
        lines(own, experiment(weights, dense=9))
    found = run_check(none, experiment(weights))
    assert [text for level, topic, text in found.lines if topic == "weights"] == [
        text for _, text in lines(none, experiment(weights))
    ]


PARTS = {
    "use": "fusion",
    "extractor": {"use": "cnn", "width": 4, "dense": 8, "train": "none"},
    "transformer": {"use": "vit", "dim": 8, "depth": 1, "heads": 2},
    "heads": 2,
}


def of_parts(files: dict[str, Path]) -> ExperimentConfig:
    tables = {
        name: {**table, "weights": str(files[name])} if name in files else table
        for name, table in PARTS.items()
        if isinstance(table, dict)
    }
    transforms = {"mean": [0.5], "std": [0.25], "interpolation": "bilinear"}
    return tiny(model={**PARTS, **tables}, transforms=transforms)


def manifest_of_parts(files: dict[str, Path]) -> dict[str, Any]:
    sent = manifest_of(Experiment.build(of_parts(files)), "r1")
    travels = sent.experiment
    for name, file in files.items():
        travels = travels.replace(str(file), f"/on/the/server/{name}")
    return dataclasses.replace(sent, experiment=travels).to_table()


@pytest.fixture
def part_files(weights: Path, tmp_path: Path) -> dict[str, Path]:
    table = PARTS["transformer"]
    state = Experiment.build(tiny(model=table, seed=8)).model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "t.safetensors")
    return {"extractor": weights, "transformer": tmp_path / "t.safetensors"}


def test_a_client_begins_with_its_own_copies_of_what_is_not_sent(
    part_files: dict[str, Path], tmp_path: Path
) -> None:
    """The Transformer is trained whole, so the server sends it and no client needs its file."""
    table = manifest_of_parts(part_files)
    sha256 = hashlib.sha256(part_files["extractor"].read_bytes()).hexdigest()
    assert RunManifest.from_table(table).weights == {"extractor": sha256}
    trainer = Trainer(client(tmp_path, extractor=str(part_files["extractor"])), tmp_path)
    trainer.open(table)
    assert trainer._worker is not None
    given, prefix = load_file(part_files["extractor"]), "backbone.extractor.network."
    own = trainer._worker.model.state_dict()
    found = {name.removeprefix(prefix): tensor for name, tensor in own.items() if name.startswith(prefix)}
    assert found
    assert all(torch.equal(tensor.contiguous(), given[f"backbone.{name}"]) for name, tensor in found.items())


@pytest.mark.parametrize("own", ["", "other"])
def test_another_file_of_a_part_or_none_is_one_sentence(
    own: str, part_files: dict[str, Path], tmp_path: Path
) -> None:
    table = manifest_of_parts(part_files)
    file = tmp_path / "own.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(part_files["extractor"]).items()}, file)
    config = client(tmp_path, **({"extractor": str(file)} if own else {}))
    with pytest.raises(ConfigError) as caught:
        Trainer(config, tmp_path).open(table)
    sentences = {
        "": "name it as parts.extractor in [model] of the client's file",
        "other": "parts.extractor in [model] of the client's file has the SHA-256",
    }
    assert sentences[own] in str(caught.value)
    assert redact_paths(str(caught.value), config) == str(caught.value)


def test_the_doctor_checks_the_files_of_parts(part_files: dict[str, Path], tmp_path: Path) -> None:
    own, there = client(tmp_path, extractor=str(part_files["extractor"])), Path("/on/the/server")
    ((level, text),) = lines(own, of_parts({"extractor": there, "transformer": there}))
    assert level == "OK"
    assert "fit the network of the extractor; the server's must be the same" in text
    ((level, text),) = lines(client(tmp_path), of_parts(part_files))
    assert level == "FAIL"
    assert "name it as parts.extractor in [model] of the client's file" in text


def test_a_part_may_be_no_code_that_the_client_does_not_allow(tmp_path: Path) -> None:
    config = tiny(model={**PARTS, "extractor": {"use": "rnn", "reads": "theirs:Network"}})
    with pytest.raises(ConfigError, match=r"\[model\] use = 'theirs:Network': this client allows built-ins"):
        client(tmp_path).permit_experiment(config)


def test_files_of_parts_are_seen_from_the_clients_file(tmp_path: Path) -> None:
    table = {"name": "a", "superlink": {"address": "h:1", "key": "k"}, "data": {"use": "digits"}}
    placed = ClientMachineConfig.placed({**table, "model": {"parts": {"extractor": "w.pth"}}}, tmp_path)
    config = ClientMachineConfig.from_dict(placed)
    assert config.model.parts == {"extractor": str(tmp_path / "w.pth")}
    assert str(tmp_path / "w.pth") in config.paths
