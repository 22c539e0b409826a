"""``model.train``: which tensors learn, and that the others neither move nor travel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedvision import simulate
from fedvision.api import RunResult
from fedvision.config import ExperimentConfig, ModelConfig
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.models.base import ImageModel
from fedvision.models.build import build_model
from fedvision.models.freezing import frozen_names, training_mode
from fedvision.models.state import floating
from fedvision.models.units import units
from fedvision.reporting.inspect_experiment import inspect_experiment
from fedvision.reporting.render import run_table
from fedvision.tasks.classification import Classification
from tests.experiments import tiny
from tests.models.test_freezing import moved

RESNET: dict[str, Any] = {"use": "resnet8", "norm": "batch", "width": 4}


def build(train: str, use: str = "resnet8", size: int = 8, channels: int = 1, **keys: Any) -> nn.Module:
    known = {name: keys.pop(name) for name in ("frozen", "personal") if name in keys}
    small = {"width": 4, "norm": "batch"} if use == "resnet8" else {}
    config = ModelConfig(use=use, train=train, args={**small, **keys}, **known)
    return build_model(
        config, task=Classification(), num_classes=3, in_channels=channels, image_size=(size, size), seed=1
    )


def names(use: str, size: int = 32, channels: int = 3, **keys: Any) -> list[str]:
    """Return the units of a network, those of torchvision built without numbers."""
    from fedvision import registry

    with torch.device("meta" if use.startswith("torchvision") else "cpu"):
        model = registry.build(
            "model",
            ModelConfig(use=use, args=keys),
            num_classes=3,
            in_channels=channels,
            image_size=(size, size),
        )
    assert isinstance(model, ImageModel)
    return [name for name, _ in units(model.backbone)]


def test_units_are_blocks_from_images_to_features() -> None:
    assert names("torchvision/resnet18") == [
        *("conv1", "bn1"),
        *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)),
    ]
    assert names("torchvision/mobilenet_v2") == [f"features.{number}" for number in range(19)]
    assert names("torchvision/vit_b_32") == [
        "conv_proj",
        *(f"encoder.layers.encoder_layer_{number}" for number in range(12)),
        "encoder.ln",
    ]
    assert names("efficientnet-lite0") == ["stem", *(f"blocks.{number}" for number in range(16)), "last"]
    found = names("timm/vit_tiny_patch16_224")
    assert found == ["patch_embed", *(f"blocks.{number}" for number in range(12)), "norm"]


def test_a_backbone_that_sees_gray_images_as_colour_has_the_same_units() -> None:
    keys: dict[str, Any] = {"use": "torchvision/mobilenet_v3_small", "size": 32, "channels": 1}
    trained = {name for name in trains(build("last:1", **keys)) if not name.startswith("head.")}
    assert trained
    assert all(name.startswith("backbone.network.classifier.0.") for name in trained)


def trains(model: nn.Module) -> set[str]:
    return set(floating(model)) - set(frozen_names(model))


def test_the_head_alone_or_the_last_units_with_it_move_under_weight_decay() -> None:
    assert moved(build("head")) == {"head.weight", "head.bias"}
    whole, last = moved(build("all")), moved(build("last:1"))
    unit = "backbone.features.stages.2.0."
    assert {name for name in last if not name.startswith("head.")} == {
        name for name in whole if name.startswith(unit)
    }
    assert any("running_mean" in name for name in last)
    assert moved(build("last:5")) == whole
    with pytest.raises(ConfigError, match=r"model\.train = 'last:6': the backbone has 5 units"):
        build("last:6")


def test_frozen_layers_stay_in_evaluation_and_keep_no_gradient() -> None:
    model = build("last:1", dropout=0.5, use="cnn", width=4, dense=8)
    training_mode(model)
    features = model.get_submodule("backbone.features")
    assert not any(module.training for module in features.modules())
    found = features(torch.zeros(2, 1, 8, 8))
    assert not found.requires_grad
    assert model.get_submodule("backbone.dense").training


@pytest.mark.parametrize("train", ["last:0", "last:", "heads", "last:-1", "LAST:1", ""])
def test_other_words_are_refused(train: str) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.train must be 'all', 'head', 'last:N' with N >= 1, or 'lo"
    ):
        ModelConfig(train=train)


def test_frozen_freezes_more_and_personal_less() -> None:
    assert trains(build("head", frozen=("head.bias",))) == {"head.weight"}
    with pytest.raises(
        ConfigError,
        match=r"model\.train = 'head' and model\.frozen = \['head\.\*'\]: no tensor is left to train",
    ):
        build("head", frozen=("head.*",))
    with pytest.raises(
        ConfigError,
        match=r"model\.personal matches 'backbone.*', which model\.train = 'head' leaves untrained",
    ):
        build("head", personal=("backbone.*",))


class Whole(nn.Module):
    """A network without halves."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images.flatten(1))
        return logits


def test_a_network_without_halves_is_refused() -> None:
    module = "tests.models.test_trained_parts" if __name__.startswith("tests.") else __name__
    with pytest.raises(ConfigError, match=r"model\.train = 'head' needs a network of backbone and head"):
        build("head", use=f"{module}:Whole")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return simulate(tiny(rounds=1, model=RESNET), out=tmp_path_factory.mktemp("first") / "run")


def tuned(first: RunResult, train: str, **tables: Any) -> ExperimentConfig:
    return tiny(
        rounds=2,
        model={**RESNET, "train": train, "weights": str(first.folder.path)},
        **{"training": {"batch_size": 32, "lr": 0.1, "weight_decay": 0.1}, **tables},
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("train", ["head", "last:1"])
def test_a_run_sends_what_it_trains_and_keeps_the_rest(
    train: str, engine: str, first: RunResult, tmp_path: Path
) -> None:
    result = simulate(tuned(first, train), engine=engine, out=tmp_path / "run")
    serial = simulate(tuned(first, train), engine="serial", out=tmp_path / "serial")
    from safetensors.torch import load_file

    before, after = (load_file(run.folder.path / "model.safetensors") for run in (first, result))
    assert result.state.keys() == serial.state.keys()
    for name, tensor in before.items():
        if name in result.state:
            torch.testing.assert_close(result.state[name], serial.state[name], atol=1e-5, rtol=1e-4)
        assert torch.equal(tensor, after[name]) == (name not in result.state), name
    unit = "backbone.features.stages.2.0."
    assert {name for name in result.state if not name.startswith("head.")} == {
        name
        for name, t in before.items()
        if train != "head" and name.startswith(unit) and t.is_floating_point()
    }


@pytest.mark.slow
def test_the_record_has_the_bytes_beside_those_of_the_network(first: RunResult, tmp_path: Path) -> None:
    result = simulate(tuned(first, "head"), out=tmp_path / "run")
    facts = result.folder.summary()
    assert facts["state_bytes"] == 4 * (16 * 10 + 10)
    assert (
        facts["network_bytes"]
        == first.folder.summary()["state_bytes"]
        == first.folder.summary()["network_bytes"]
    )
    assert "680 B of the network's" in run_table(result.folder)
    assert "of the network's" not in run_table(first.folder)
    text = inspect_experiment(Experiment.build(tuned(first, "head")))
    assert "680 B each way for one, of the network's" in " ".join(text.split())  # whatever the lines' width


def test_random_numbers_that_are_frozen_are_told(first: RunResult) -> None:
    (sentence,) = [
        text
        for text in Experiment.build(tiny(model={**RESNET, "train": "head"})).notices()
        if "model.train" in text
    ]
    assert sentence == "model.train = 'head' freezes numbers that the seed draws, as model.weights is empty"
    assert not any("model.train" in text for text in Experiment.build(tuned(first, "head")).notices())
