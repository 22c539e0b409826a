"""Features of several layers: means over places behind a backbone's own, wherever features are computed."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedvision.api import simulate
from fedvision.config import ModelConfig
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.models import frozen_front
from fedvision.models.base import ImageModel
from fedvision.models.build import build_model
from fedvision.models.feature_layers import add_feature_layers
from fedvision.models.meta import model_with
from fedvision.models.mirrored import average_with_mirror_image
from fedvision.models.units import units
from fedvision.tasks.classification import Classification
from fedvision.trained_model import load
from tests.experiments import tiny
from tests.models.test_parts import OWN, SMALL_RESNET, extractor_of
from tests.models.test_parts import build as build_fusion
from tests.models.test_parts import images as fusion_images

LAYERS = ["features.conv1", "features.conv3"]


class Maps(nn.Module):
    """Feature maps [B, C, h, w] with the channels last, as Swin's blocks have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


class Tokens(nn.Module):
    """Feature maps [B, C, h, w] as tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


class Several(nn.Module):
    """Returns two tensors."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Views(nn.Module):
    """Features are the first pixel; other layers see the image in other forms."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.last, self.tokens, self.flat = nn.Identity(), Maps(), Tokens(), nn.Flatten()
        self.several, self.idle = Several(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.image(x)
        self.last(x), self.tokens(x), self.flat(x), self.several(x)
        return x[:, :, 0, 0]


def pictures(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_the_means_by_hand() -> None:
    backbone = nn.Sequential(nn.ReLU(), nn.Flatten())
    add_feature_layers(backbone, ["0"], pictures(2, 1, 2, 2))
    image = torch.tensor([[[[1.0, -2.0], [3.0, 4.0]]]])
    assert backbone(image).tolist() == [[1.0, 0.0, 3.0, 4.0, 2.0]]


@pytest.mark.parametrize("size", [(4, 4), (6, 3), (5, 5)])
def test_places_of_maps_tokens_and_features(size: tuple[int, int]) -> None:
    """Five channels: of a 5 x 5 image both readings fit, and torch's own order is taken."""
    x = pictures(2, 5, *size)
    for name, wanted in {
        "image": x.mean((2, 3)),
        "last": x.mean((2, 3)) if size != (5, 5) else x.mean((1, 3)),
        "tokens": x.mean((2, 3)),
        "flat": x.flatten(1),
    }.items():
        backbone = Views()
        add_feature_layers(backbone, [name], x)
        torch.testing.assert_close(backbone(x)[:, 5:], wanted)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["imagee"], "the backbone has no layer 'imagee'; did you mean 'image'?"),
        (["x.y"], "no layer 'x.y'; known: flat, idle, image, last, several, tokens"),
        (["image", "image"], "'image' is named twice"),
        (["idle"], "the layer 'idle' is not called by the backbone"),
        (["several"], "'several' returns a tuple, not a tensor"),
    ],
)
def test_layers_that_cannot_be_taken(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        add_feature_layers(Views(), names, pictures(2, 5, 4, 4))
    assert message in str(caught.value)


def test_a_mirror_image_has_its_own_layers() -> None:
    backbone = Views()
    average_with_mirror_image(backbone)
    x = pictures(3, 2, 4, 4)
    add_feature_layers(backbone, ["image", "flat"], x)
    flipped = x.flip(-1)
    wanted = [
        (one(x) + one(flipped)) / 2
        for one in (lambda i: i[:, :, 0, 0], lambda i: i.mean((2, 3)), nn.Flatten())
    ]
    assert torch.equal(backbone(x), torch.cat(wanted, 1))


def several(**tables: Any) -> Any:
    base: dict[str, Any] = {
        "rounds": 1,
        "model": {"use": "cnn", "width": 4, "dense": 16, "frozen": ["backbone.*"], "feature_layers": LAYERS},
        "strategy": {"use": "closed-form"},
        "training": {"device": "cpu"},
    }
    return tiny(**base | tables)


def test_copies_keep_them_and_the_tensors_keep_their_names() -> None:
    plain = Experiment.build(several(model={"use": "cnn", "width": 4, "dense": 16})).model
    model = Experiment.build(several()).model
    assert isinstance(plain, ImageModel)
    assert isinstance(model, ImageModel)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.head.in_features == 16 + 4 + 8
    images = pictures(3, 1, 8, 8)
    plain.eval(), model.eval()
    with torch.no_grad():
        maps = plain.backbone.get_submodule("features.conv1")(images)
        wanted = model.backbone(images)
        assert torch.equal(wanted[:, :16], plain.backbone(images))
        torch.testing.assert_close(wanted[:, 16:20], maps.mean((2, 3)))
        for one in (model_with(model, {}), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            one.eval()
            for parameter in model.parameters():
                parameter.zero_()  # a copy's layers are its own
            assert torch.equal(one.backbone(images), wanted)
            model.load_state_dict(one.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["closed-form", "fedavg"])
def test_cached_or_not_and_on_every_engine_the_bits_are_the_same(strategy: str, tmp_path: Path) -> None:
    """Closed form and trained heads; the final model predicts what the run measured."""
    tables: dict[str, Any] = {"strategy": {"use": strategy}}
    found = simulate(several(**tables), out=tmp_path / "run")
    assert found.state["head.weight"].shape == (10, 28)
    uncached = {"device": "cpu", "cache_features": False}
    other = simulate(several(training=uncached, **tables), out=tmp_path / "uncached", threads=2)
    if strategy == "closed-form":
        assert all(torch.equal(other.state[name], tensor) for name, tensor in found.state.items())
    else:  # batches of another size differ in their last bits
        torch.testing.assert_close(other.state, found.state, rtol=1e-3, atol=1e-5)
    vectorized = simulate(several(**tables), out=tmp_path / "vectorized", engine="vectorized")
    torch.testing.assert_close(vectorized.state, found.state, rtol=1e-4, atol=1e-6)
    images = Experiment.build(several()).dataset.test
    assert images is not None
    right = np.mean(load(tmp_path / "run").predict(images.images).labels == images.labels)
    assert right == pytest.approx(found.scores["accuracy"])


@pytest.mark.slow
def test_a_backbone_that_is_trained_has_them_too(tmp_path: Path) -> None:
    model = {"use": "cnn", "width": 4, "dense": 16, "feature_layers": LAYERS}
    config = several(model=model, strategy={"use": "fedavg"})
    serial, vectorized = (
        simulate(config, out=tmp_path / engine, engine=engine).state for engine in ("serial", "vectorized")
    )
    assert serial["head.weight"].shape == (10, 28)
    torch.testing.assert_close(vectorized, serial, rtol=1e-4, atol=1e-6)
    first = Experiment.build(config).model.state_dict()
    assert not torch.equal(serial["backbone.features.conv1.weight"], first["backbone.features.conv1.weight"])
    assert not torch.equal(serial["head.weight"][:, 16:], first["head.weight"][:, 16:])


@pytest.mark.slow
def test_a_head_for_other_features_begins_anew(tmp_path: Path) -> None:
    plain = {"use": "cnn", "width": 4, "dense": 16, "frozen": ["backbone.*"]}
    run = simulate(several(model=plain), out=tmp_path / "run").folder.path
    built = Experiment.build(several(model={**plain, "weights": str(run), "feature_layers": LAYERS}))
    assert built.weights is not None
    assert "its head is another one or takes other features" in built.weights.notices[0]
    state = Experiment.build(several(model={**plain, "weights": str(run)})).model.state_dict()
    for name, tensor in built.model.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, state[name])
    # conv2 and conv3 have as many channels: shapes alone do not tell.
    second = simulate(
        several(model={**plain, "feature_layers": ["features.conv2"]}), out=tmp_path / "second"
    ).folder.path
    other = Experiment.build(several(model={**plain, "weights": str(second), "feature_layers": LAYERS[1:]}))
    assert other.weights is not None
    assert "its head is another one or takes other features" in other.weights.notices[0]
    same = several(model={**plain, "weights": str(second), "feature_layers": ["features.conv2"]})
    kept = Experiment.build(same).model.state_dict()
    assert torch.equal(kept["head.weight"], load(second).network.state_dict()["head.weight"])


@pytest.mark.slow
def test_a_librarys_weights_and_gray_images(tmp_path: Path) -> None:
    """A ResNet for colour whose file has a head for 1,000 classes of its own features."""
    own = build("torchvision/resnet18", {}, channels=3)
    file = {name.removeprefix("backbone."): t for name, t in own.state_dict().items() if "backbone" in name}
    file |= {"fc.weight": torch.randn(1000, 512), "fc.bias": torch.randn(1000)}
    save_file({name: t.contiguous() for name, t in file.items()}, tmp_path / "file.safetensors")
    config = several(
        model={
            "use": "torchvision/resnet18",
            "weights": str(tmp_path / "file.safetensors"),
            "train": "head",
            "feature_layers": ["layer2", "layer3.1"],
        },
        transforms={"size": 32, "mean": [0.5], "std": [0.25]},
    )
    built = Experiment.build(config)
    assert built.model.head.in_features == 512 + 128 + 256  # type: ignore[union-attr]
    assert "its head has 1000 outputs and the network's 10" in built.weights.notices[0]  # type: ignore[union-attr]


def build(use: str, args: dict[str, Any], channels: int = 1) -> Any:
    return build_model(
        ModelConfig(use=use, args=args),
        task=Classification(),
        num_classes=10,
        in_channels=channels,
        image_size=(32, 32),
        seed=1,
    )


@pytest.mark.slow
def test_activations_that_are_computed_anew_give_the_same_bits(tmp_path: Path) -> None:
    model = {
        "use": "resnet8",
        "width": 4,
        "feature_layers": [units(build("resnet8", {"width": 4}).backbone)[1][0]],
    }
    runs = [
        simulate(
            several(
                model=model,
                strategy={"use": "fedavg"},
                training={"device": "cpu", "checkpoint_activations": anew},
            ),
            out=tmp_path / str(anew),
        ).state
        for anew in (False, True)
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def one_piece(*, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size[0] * image_size[1], num_classes))


def deep_head(*, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    head = nn.Sequential(nn.ReLU(), nn.Linear(image_size[0] * image_size[1], num_classes))
    return ImageModel(nn.Sequential(nn.Flatten()), head)


def test_networks_that_cannot_have_them_are_refused() -> None:
    for use, message in (
        ("one_piece", "needs a network of backbone and head"),
        ("deep_head", "a Sequential"),
    ):
        with pytest.raises(ConfigError, match=message):
            Experiment.build(tiny(model={"use": f"{__name__}:{use}", "feature_layers": ["0"]}))


@pytest.mark.parametrize(("layer", "kept"), [("features.stages.0", False), ("features.stages.2", True)])
def test_frozen_layers_run_once_only_where_no_further_feature_is_theirs(layer: str, kept: bool) -> None:
    model = {"use": "resnet8", "width": 4, "train": "last:1", "feature_layers": [layer]}
    found = frozen_front.cut(Experiment.build(several(model=model)).model, (1, 8, 8))
    assert (found is not None) == kept


def test_the_layer_of_the_tokens_may_give_features_too() -> None:
    layers = ("extractor.network.features.stages.0", "extractor.network.features")
    plain = build_fusion(extractor=SMALL_RESNET, size=16, **OWN).eval()
    wider = build_fusion(extractor=SMALL_RESNET, size=16, feature_layers=layers, **OWN).eval()
    found = wider.backbone(fusion_images(16))
    assert torch.equal(found[:, :24], plain.backbone(fusion_images(16)))
    torch.testing.assert_close(found[:, 28:], extractor_of(plain)(fusion_images(16)).mean((2, 3)))
