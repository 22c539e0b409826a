"""Cosine heads from class embeddings: by hand, from files of each form, zero-shot, trained and deployed."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedvision.api import RunResult, simulate
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, FedVisionError, PluginError
from fedvision.experiment import Experiment
from fedvision.models.base import ImageModel
from fedvision.models.build import build_model
from fedvision.models.cosine_head import CosineHead
from fedvision.tasks.classification import Classification
from fedvision.trained_model import load
from tests.experiments import tiny

CLASSES, SIZE = 10, 64


def as_pixels(*, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """A network whose features are the pixels themselves, with one frozen tensor."""
    return ImageModel(Pixels(), nn.Linear(SIZE, num_classes))


class Pixels(nn.Module):
    """Features are the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one * x.flatten(1)


def head(file: Path | str, **keys: Any) -> dict[str, Any]:
    return {"use": "cosine", "embeddings": str(file), "scale": 20.0, **keys}


def model(file: Path | str, **keys: Any) -> dict[str, Any]:
    return {"use": f"{__name__}:as_pixels", "frozen": ["backbone.*"], "head": head(file, **keys)}


def config(file: Path | str, tables: dict[str, Any] | None = None, **keys: Any) -> Any:
    base: dict[str, Any] = {
        "rounds": 1,
        "model": model(file, **keys),
        "strategy": {"use": "zero-shot"},
        "training": {"device": "cpu"},
        "partition": {"use": "iid", "clients": 3},
    }
    return tiny(**base | (tables or {}))


@pytest.fixture(scope="module")
def prototypes() -> torch.Tensor:
    """Mean normalised training image of each digit [10, 64]: what a text encoder's embeddings are to CLIP."""
    data = Experiment.build(tiny()).dataset.train
    pixels = torch.from_numpy((data.images.reshape(-1, SIZE) / 255 - 0.5) / 0.25)
    return torch.stack([pixels[torch.from_numpy(data.labels == c)].mean(0) for c in range(CLASSES)]).float()


@pytest.fixture(scope="module")
def file(prototypes: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / "names.safetensors"
    save_file({"embeddings": prototypes}, path)
    return path


@pytest.fixture(scope="module")
def zero_shot(file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    tables = {"evaluation": {"holdout": 0.2}}
    return simulate(config(file, tables), out=tmp_path_factory.mktemp("zero") / "run")


def test_logits_by_hand() -> None:
    """Features (3, 4) against embeddings (2, 0) and (0, 1): cosines 0.6 and 0.8, times 10, plus the bias."""
    own = CosineHead(in_features=2, num_classes=2, embeddings="", scale=10.0)
    own.embeddings.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    with torch.no_grad():
        own.bias.copy_(torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(own(torch.tensor([[3.0, 4.0]])), torch.tensor([[7.0, 7.0]]))
    assert own.log_scale.item() == pytest.approx(math.log(10))
    assert [name for name, _ in own.named_parameters()] == ["log_scale", "bias"]
    wide = CosineHead(in_features=3, num_classes=2, embeddings="", size=2, project=True, learn="all")
    assert {name for name, _ in wide.named_parameters()} == {
        "log_scale",
        "bias",
        "embeddings",
        "project.weight",
    }


def test_zero_shot_is_measured_and_serves(zero_shot: RunResult, prototypes: torch.Tensor, file: Path) -> None:
    """The scores are those of the nearest prototypes, computed here, and nothing was trained."""
    test = Experiment.build(tiny()).dataset.test
    assert test is not None
    pixels = torch.from_numpy((test.images.reshape(-1, SIZE) / 255 - 0.5) / 0.25).float()
    wanted = nn.functional.cosine_similarity(pixels[:, None], prototypes[None], dim=-1).argmax(1).numpy()
    found = load(zero_shot.folder.path)
    assert np.array_equal(found.predict(test.images).labels, wanted)
    assert zero_shot.rounds[0]["server"]["scores"]["accuracy"] == pytest.approx(
        np.mean(wanted == test.labels)
    )
    assert zero_shot.scores["accuracy"] > 0.7
    assert zero_shot.rounds[0]["local"]["scores"]["accuracy"] > 0.7
    assert zero_shot.rounds[0]["changed"]
    args = found.description.model.head.args
    assert args["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert args["size"] == SIZE
    torch.testing.assert_close(zero_shot.state["head.embeddings"], nn.functional.normalize(prototypes))


@pytest.mark.slow
@pytest.mark.parametrize("learn", ["scale", "all"])
def test_a_head_is_trained(learn: str, file: Path, zero_shot: RunResult, tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "strategy": {"use": "fedavg"},
        "rounds": 2,
        "training": {"device": "cpu", "lr": 0.01},
    }
    serial, vectorized = (
        simulate(config(file, tables, learn=learn), out=tmp_path / engine, engine=engine)
        for engine in ("serial", "vectorized")
    )
    torch.testing.assert_close(vectorized.state, serial.state, rtol=1e-3, atol=1e-5)
    before, after = zero_shot.state, serial.state
    assert not torch.equal(after["head.log_scale"], before["head.log_scale"])
    assert not torch.equal(after["head.bias"], before["head.bias"])
    moved = (after["head.embeddings"] - before["head.embeddings"]).abs().max()
    assert (float(moved) > 1e-3) == (learn == "all")
    assert serial.scores["accuracy"] > 0.7


def test_a_linear_head_of_a_file_leaves_the_cosine_head(file: Path, tmp_path: Path) -> None:
    """As of a pretrained backbone with the classifier of its own training."""
    linear = {"use": f"{__name__}:as_pixels", "frozen": ["backbone.*"]}
    run = simulate(config(file, {"model": linear, "strategy": {"use": "closed-form"}}), out=tmp_path / "run")
    tensors = load(run.folder.path).network.state_dict()
    save_file(tensors, tmp_path / "file.safetensors")
    for weights in (run.folder.path, tmp_path / "file.safetensors"):
        built = Experiment.build(config(file, {"model": {**model(file), "weights": str(weights)}}))
        assert built.weights is not None
        assert any("its head is another one or takes other features" in one for one in built.weights.notices)
        assert built.model.state_dict()["head.log_scale"].item() == pytest.approx(math.log(20))


def test_a_run_goes_on_from_a_zero_shot_model(file: Path, zero_shot: RunResult, tmp_path: Path) -> None:
    weights = {**model(file), "weights": str(zero_shot.folder.path)}
    built = Experiment.build(config(file, {"model": weights, "strategy": {"use": "fedavg"}}))
    assert built.weights is not None
    assert built.weights.notices == ()
    other = tmp_path / "other.npy"
    np.save(other, np.random.default_rng(0).normal(size=(CLASSES, SIZE)))
    weights = {**model(other), "weights": str(zero_shot.folder.path)}
    built = Experiment.build(config(other, {"model": weights, "strategy": {"use": "fedavg"}}))
    assert built.weights is not None
    assert "its head is another one or takes other features" in built.weights.notices[0]
    kept = built.model.state_dict()["head.embeddings"]
    torch.testing.assert_close(kept, nn.functional.normalize(torch.from_numpy(np.load(other)).float()))


def embeddings(path: Path, **keys: Any) -> torch.Tensor:
    found = Experiment.build(config(path, **keys)).model.state_dict()["head.embeddings"]
    assert isinstance(found, torch.Tensor)
    return found


def test_every_form_of_file(prototypes: torch.Tensor, file: Path, tmp_path: Path) -> None:
    wanted = nn.functional.normalize(prototypes)
    np.save(tmp_path / "names.npy", prototypes.numpy())
    names = Experiment.build(tiny()).dataset.classes
    by_name = {name: prototypes[place].clone() for place, name in enumerate(names)}
    save_file(
        {**dict(reversed(by_name.items())), "another": torch.ones(SIZE)}, tmp_path / "by-name.safetensors"
    )
    prompts = torch.stack([prototypes * 3, prototypes + 0.5], 1)
    np.save(tmp_path / "prompts.npy", prompts.numpy())
    for path in (tmp_path / "names.npy", tmp_path / "by-name.safetensors", file):
        torch.testing.assert_close(embeddings(path), wanted)
    mean = nn.functional.normalize(nn.functional.normalize(prompts, dim=-1).mean(1))
    torch.testing.assert_close(embeddings(tmp_path / "prompts.npy"), mean)
    narrow = {name: tensor[:8].clone() for name, tensor in by_name.items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    assert embeddings(tmp_path / "narrow.safetensors", project=True).shape == (CLASSES, 8)
    with pytest.raises(
        PluginError, match="embeddings have 8 numbers and the backbone makes 64 features; set"
    ):
        embeddings(tmp_path / "narrow.safetensors")


def test_files_that_do_not_fit_are_refused(prototypes: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "names.npy"
    nan, flat = prototypes.clone(), prototypes.clone()
    nan[3, 3], flat[2] = float("nan"), 0
    for array, message in (
        (prototypes[:9], r"its embeddings are \[9, 64\], and .* of C = 10 classes are needed"),
        (prototypes[0], r"its embeddings are \[64\]"),
        (nan, "holds NaN or infinity, or zeros alone"),
        (flat, "holds NaN or infinity, or zeros alone"),
    ):
        np.save(path, array.numpy())
        with pytest.raises(ConfigError, match=message):
            Experiment.build(config(path))
    np.save(path, np.array([{"code": 1}], object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"this is no \.npy file of numbers"):
        Experiment.build(config(path))
    save_file({"zero": torch.ones(3), "one": torch.ones(3)}, tmp_path / "few.safetensors")
    (tmp_path / "none.bin").write_bytes(b"none")
    for name, message in (
        ("few.safetensors", "it lacks embeddings of 0, 1, 2, 3, 4 and 5 more"),
        ("none.bin", r"neither a \.safetensors nor a \.npy file"),
        ("nowhere", "it cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            Experiment.build(config(tmp_path / name))


def test_another_file_than_the_recorded_one_is_refused(file: Path, tmp_path: Path) -> None:
    recorded = Experiment.build(config(file)).config
    assert Experiment.build(recorded).config == recorded
    table = recorded.to_dict()
    np.save(tmp_path / "other.npy", np.ones((CLASSES, SIZE)))
    table["model"]["head"]["embeddings"] = str(tmp_path / "other.npy")
    with pytest.raises(ConfigError, match=r"the file's sha256 is .*; restore the file, or leave the key out"):
        Experiment.build(type(recorded).from_dict(table))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"head": {"embeddings": "x"}}, "model.head needs a key use"),
        ({"head": {"use": "cosine"}}, "the key 'embeddings' is missing"),
        ({"head": {"use": "cosin", "embeddings": "x"}}, "did you mean 'cosine'"),
        ({"personal": ["head.embeddings"]}, "'head.embeddings' is not shared"),
        ({"shared": "trainable"}, "'head.embeddings' is not shared"),
        ({"expand": "random-relu"}, "model.expand needs the network's own linear head"),
    ],
)
def test_what_cannot_work(keys: dict[str, Any], message: str, file: Path) -> None:
    table = config(file).to_dict() | {"model": {**model(file), **keys}}
    with pytest.raises(FedVisionError, match=message):
        Experiment.build(ExperimentConfig.from_dict(table))


def test_a_clients_network_is_built_without_the_file(file: Path) -> None:
    """Across machines the embeddings come with the model; the file's path is the server's own."""
    resolved = Experiment.build(config(file)).config.to_dict()
    resolved["model"]["head"]["embeddings"] = "/nowhere/names.safetensors"
    table = type(config(file)).from_dict(resolved)
    own = build_model(
        table.model, task=Classification(), num_classes=10, in_channels=1, image_size=(8, 8), seed=3
    )
    assert own.state_dict()["head.embeddings"].shape == (CLASSES, SIZE)
