"""Networks of libraries: each is its head after its backbone, and gives what the library's own gives."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from fedvision import registry
from fedvision.config import ModelConfig
from fedvision.errors import ConfigError, PluginError
from fedvision.models import timm_models, torchvision_models, weights_file
from fedvision.models.base import ImageModel, LibraryNames
from fedvision.models.build import build_model
from fedvision.models.weights import load_weights
from fedvision.tasks.classification import Classification

NAMES = [name for name in torchvision_models.names() if name not in ("regnet_y_128gf", "vit_h_14")]
"""All but two of 0.6 billion parameters, for which the others of their kind stand."""
SMALL = [
    *("densenet121", "googlenet", "mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf", "resnet18"),
    *("shufflenet_v2_x0_5", "squeezenet1_1"),
]
"""One of each kind that is quick to build."""
LARGE = ["alexnet", "efficientnet_b0", "inception_v3", "mobilenet_v2", "resnet50", "vgg11_bn", "vit_b_32"]
"""One of each kind that is quick to build without numbers."""
SIDE = {"inception_v3": 75, "maxvit_t": 224}
CLASSES = 5


def side(name: str) -> int:
    return SIDE.get(name, 64)


def library(name: str) -> nn.Module:
    """Return torchvision's own network."""
    keys: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        keys = {"aux_logits": False, "init_weights": True, "transform_input": True}
    if name.startswith("vit_"):
        keys = {"image_size": side(name)}
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **keys)
    return network.eval()


def ours(use: str, size: int, channels: int = 3, classes: int = CLASSES, **keys: Any) -> nn.Module:
    network: nn.Module = registry.build(
        "model",
        ModelConfig(use=use, args=keys),
        num_classes=classes,
        in_channels=channels,
        image_size=(size, size),
    )
    return network.eval()


def given_names(model: ImageModel, names: list[str]) -> set[str | None]:
    assert model.library is not None
    return {model.library.here(name) for name in names}


def without_memory(name: str) -> bool:
    """Return whether a network can be built without numbers: these kinds compute with theirs."""
    return not name.startswith(("regnet", "swin", "convnext", "efficientnet_v2", "maxvit"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name in SMALL + LARGE else pytest.param(name, marks=pytest.mark.long)
        for name in NAMES
        if without_memory(name)
    ],
)
def test_every_network_of_torchvision_has_its_tensors_in_backbone_and_head(name: str) -> None:
    with torch.device("meta"):
        model, original = ours(f"torchvision/{name}", side(name)), library(name)
        images = torch.zeros(2, 3, side(name), side(name))
        assert isinstance(model, ImageModel)
        features, outputs = model.backbone(images), model(images)
    assert features.shape[0] == 2
    assert outputs.shape == original(images).shape == (2, CLASSES)
    if isinstance(model.head, nn.Linear):
        assert features.shape == (2, model.head.in_features)
    assert isinstance(model.head, nn.Linear) or name.startswith("squeezenet")
    theirs, state = original.state_dict(), model.state_dict()
    assert given_names(model, list(theirs)) == set(state)
    assert model.library is not None
    for key, tensor in theirs.items():
        assert state[str(model.library.here(key))].shape == tensor.shape


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.long) for name in NAMES]
)
def test_every_network_of_torchvision_gives_what_torchvisions_gives(name: str, tmp_path: Path) -> None:
    original, model = library(name), ours(f"torchvision/{name}", side(name))
    torch.save(original.state_dict(), tmp_path / "file.pth")
    config = ModelConfig(use=f"torchvision/{name}", weights=str(tmp_path / "file.pth"))
    assert load_weights(model, weights_file.read(config), list("abcde")).notices == ()
    images = torch.randn(2, 3, side(name), side(name), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert isinstance(model, ImageModel)
        assert torch.equal(model.head(model.backbone(images)), original(images))
        assert torch.equal(model(images), original(images))


@pytest.mark.slow
def test_auxiliary_classifiers_in_a_file_are_left_out() -> None:
    for name, prefixes in (("googlenet", ("aux1.", "aux2.")), ("inception_v3", ("AuxLogits.",))):
        with torch.device("meta"):
            network = torchvision.models.get_model(
                name, weights=None, num_classes=CLASSES, aux_logits=True, init_weights=False
            )
            model = ours(f"torchvision/{name}", side(name))
        assert isinstance(model, ImageModel)
        extra = [key for key in network.state_dict() if key.startswith(prefixes)]
        assert extra
        assert given_names(model, list(network.state_dict())) - {None} == set(model.state_dict())
        assert given_names(model, extra) == {None}


def test_old_names_in_torchvisions_files_are_understood() -> None:
    names = LibraryNames(renamed=torchvision_models._RENAMED)
    for old, new in {
        "features.denseblock1.denselayer2.norm.1.weight": "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock1.denselayer2.conv.2.weight": "features.denseblock1.denselayer2.conv2.weight",
        "encoder.layers.encoder_layer_3.mlp.linear_1.bias": "encoder.layers.encoder_layer_3.mlp.0.bias",
        "encoder.layers.encoder_layer_3.mlp.linear_2.bias": "encoder.layers.encoder_layer_3.mlp.3.bias",
        "layer1.0.conv1.weight": "layer1.0.conv1.weight",
    }.items():
        assert names.here(old) == f"backbone.{new}"


@pytest.mark.slow
def test_a_backbone_begins_on_other_classes_and_on_gray_images(tmp_path: Path) -> None:
    original = torchvision.models.resnet18(weights=None, num_classes=7)
    save_file(original.state_dict(), tmp_path / "file.safetensors")
    config = ModelConfig(use="torchvision/resnet18", weights=str(tmp_path / "file.safetensors"))
    task = Classification()
    gray = build_model(config, task=task, num_classes=3, in_channels=1, image_size=(32, 32), seed=0)
    colour = build_model(config, task=task, num_classes=3, in_channels=3, image_size=(32, 32), seed=0)
    for network in (gray, colour):
        (sentence,) = load_weights(network, weights_file.read(config), list("abc")).notices
        assert (
            "its head has 7 outputs and the network's 3, so the head begins with its first values" in sentence
        )
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(gray.eval()(images), gray.head(original_features(original, images)))
    # The file of one run begins the other.
    for network, other in ((gray, colour), (colour, gray)):
        state = {name: tensor + 1 for name, tensor in network.state_dict().items()}
        save_file(state, tmp_path / "file.safetensors")
        assert load_weights(other, weights_file.read(config), list("abc")).notices == ()
        values = dict(zip(state, other.state_dict().values(), strict=True))
        assert all(
            torch.equal(tensor, values[name]) for name, tensor in state.items() if tensor.is_floating_point()
        )


def original_features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    network.eval().fc = nn.Identity()
    features: torch.Tensor = network(images.expand(-1, 3, -1, -1))
    return features


@pytest.mark.parametrize(
    ("use", "keys", "sentence"),
    [
        ("torchvision/resnet5", {}, "there is no such model; did you mean 'torchvision/resnet50'?"),
        ("torchvision/nothing-like-it", {}, "there is no such model; did you mean 'torchvision/resnet50'?"),
        ("timm/resnet18x", {}, "there is no such model; did you mean 'timm/resnet18'?"),
        ("efficientnet-lite7", {}, "did you mean 'efficientnet-lite0'?"),
        ("torchvision/resnet18", {"progress": True}, "it takes no key 'progress'"),
        ("torchvision/resnet18", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("timm/resnet18", {"checkpoint_path": "/x"}, "it takes no key 'checkpoint_path'; see model.weights"),
        ("timm/resnet18", {"pretrained": True}, "it takes no key 'pretrained'; see model.weights"),
        ("efficientnet-lite0", {"dropout": 1.0}, "dropout must be >= 0 and < 1, not 1.0"),
    ],
)
def test_a_wrong_name_or_key_is_one_sentence(use: str, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        ours(use, 32, **keys)
    assert sentence in str(caught.value)
    assert f"[model] use = {use!r}" in str(caught.value)


def test_a_vit_is_built_for_the_images_and_takes_square_ones_alone() -> None:
    with torch.device("meta"):
        model = ours("torchvision/vit_b_32", 96)
    assert model.state_dict()["backbone.encoder.pos_embedding"].shape == (1, 1 + 9, 768)
    with pytest.raises(PluginError, match=r"it takes square images, not 64 x 96; set transforms\.size"):
        registry.build(
            "model",
            ModelConfig(use="torchvision/vit_b_32"),
            num_classes=2,
            in_channels=3,
            image_size=(64, 96),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050", "convnext_atto"]
)
def test_a_network_of_timm_gives_what_timms_gives(name: str, tmp_path: Path) -> None:
    import timm

    keys = {"img_size": 32} if name.startswith("vit") else {}
    original = timm.create_model(name, num_classes=CLASSES, **keys).eval()
    model = ours(f"timm/{name}", 32)
    save_file(original.state_dict(), tmp_path / "file.safetensors")
    config = ModelConfig(use=f"timm/{name}", weights=str(tmp_path / "file.safetensors"))
    assert load_weights(model, weights_file.read(config), list("abcde")).notices == ()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert isinstance(model, ImageModel)
        torch.testing.assert_close(model.head(model.backbone(images)), original(images))
    assert ours(f"timm/{name}", 32, channels=2)(torch.zeros(1, 2, 32, 32)).shape == (1, CLASSES)


@pytest.mark.parametrize("use", ["efficientnet-lite0", "timm/resnet10t"])
def test_a_librarys_network_sees_gray_images_as_colour(use: str, tmp_path: Path) -> None:
    colour = ours(use, 32)
    save_file(colour.state_dict(), tmp_path / "file.safetensors")
    config = ModelConfig(use=use, weights=str(tmp_path / "file.safetensors"))
    gray = build_model(
        config, task=Classification(), num_classes=CLASSES, in_channels=1, image_size=(32, 32), seed=0
    )
    assert load_weights(gray, weights_file.read(config), list("abcde")).notices == ()
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(gray.eval()(images), colour(images.expand(-1, 3, -1, -1)))


def test_weights_of_timm_come_from_its_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    config = ModelConfig(use="timm/vit_tiny_patch16_224", weights="augreg_in21k")
    asked = []

    def fetch(repository: str, name: str) -> str:
        asked.append((repository, name))
        if len(asked) > 1:
            raise OSError("no route to host")
        save_file({"one": torch.zeros(1)}, tmp_path / "file.safetensors")
        return str(tmp_path / "file.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert list(weights_file.read(config).state) == ["one"]
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k", "model.safetensors")]
    with pytest.raises(
        ConfigError, match=r"vit_tiny_patch16_224\.augreg_in21k of timm cannot be downloaded \(no r"
    ):
        weights_file.read(config)


def test_without_timm_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PluginError, match=r'needs the package timm, .*: pip install "fedvision\[timm\]"$'):
        registry.resolve("model", "timm/resnet18")


def test_libraries_say_how_their_weights_were_trained() -> None:
    found = torchvision_models.published("resnet50")["IMAGENET1K_V2"]
    assert found.digest == "11ad3fa6"
    assert found.preprocessing.mean == (0.485, 0.456, 0.406)
    assert (found.preprocessing.size, found.preprocessing.interpolation) == (224, "bilinear")
    tag = timm_models.published("vit_tiny_patch16_224")["augreg_in21k_ft_in1k"]
    assert tag.preprocessing.mean == tag.preprocessing.std == (0.5, 0.5, 0.5)
    assert (tag.preprocessing.size, tag.preprocessing.interpolation) == (224, "bicubic")
    assert all(torchvision_models.published(name) for name in NAMES)


def test_a_librarys_weights_are_found_by_name_and_downloaded_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def fetch(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    config = ModelConfig(use="torchvision/resnet18", weights="IMAGENET1K_V1")
    first = weights_file.read(config)
    assert weights_file.digest(config) == first.sha256
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file .*, or 'IMAGENET1K_V1'$"):
        weights_file.read(ModelConfig(use="torchvision/resnet18", weights="IMAGENET1K_V3"))


def test_what_cannot_be_downloaded_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any, **keys: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    sentence = rf"resnet18-f37072fd\.pth cannot be downloaded \(no route to host\); copy it to {tmp_path}"
    with pytest.raises(ConfigError, match=sentence):
        weights_file.read(ModelConfig(use="torchvision/resnet18", weights="IMAGENET1K_V1"))


def test_lite0_has_the_published_shape_and_reads_the_published_names(tmp_path: Path) -> None:
    model = ours("efficientnet-lite0", 64)
    assert isinstance(model, ImageModel)
    assert sum(p.numel() for p in model.backbone.parameters()) == 3_371_008
    theirs = OrderedDict((published_name(name), tensor + 1) for name, tensor in model.state_dict().items())
    assert {"_conv_stem.weight", "_blocks.15._bn2.running_var", "_bn1.bias", "_fc.weight"} <= theirs.keys()
    torch.save(theirs, tmp_path / "file.pth")
    config = ModelConfig(use="efficientnet-lite0", weights=str(tmp_path / "file.pth"))
    assert load_weights(model, weights_file.read(config), list("abcde")).notices == ()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, theirs[published_name(name)])


@pytest.mark.slow
def test_lite0_computes_what_the_published_network_computes() -> None:
    """The numbers are those of PyPI's ``efficientnet-lite-pytorch`` 0.1.0 with the same tensors and image."""
    model = ours("efficientnet-lite0", 224, classes=4).double()
    names = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    with torch.no_grad():
        for place, name in enumerate(names):
            tensor = model.state_dict()[name]
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * (0.7 + place / 100))
            wave = wave.view(tensor.shape)
            if tensor.dim() > 1:
                wave = wave * (2 / tensor[0].numel()) ** 0.5
            elif name.endswith("running_var"):
                wave = 1 + wave / 2
            else:
                wave = wave / 4 + name.endswith("weight")
            tensor.copy_(wave.float())
        image = torch.cos(torch.arange(3 * 224 * 224, dtype=torch.float64) * 0.31).view(1, 3, 224, 224)
        found = model(image.float().double())
    wanted = [-0.39749929319033817, -0.58098448553197, 0.6741847404338267, 0.25398358405363647]
    torch.testing.assert_close(found[0], torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0)


def published_name(name: str) -> str:
    part, *rest = name.removeprefix("backbone.").split(".")
    if part == "head":
        return f"_fc.{rest[0]}"
    if part != "blocks":
        outer = {("stem", "conv"): "_conv_stem", ("stem", "norm"): "_bn0"}
        outer |= {("last", "conv"): "_conv_head", ("last", "norm"): "_bn1"}
        return f"{outer[part, rest[0]]}.{rest[1]}"
    number, step, layer, leaf = rest
    bn = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[step]
    return f"_blocks.{number}.{f'_{step}_conv' if layer == 'conv' else bn}.{leaf}"


def test_same_padding_adds_what_a_stride_leaves_over() -> None:
    from fedvision.models.efficientnet_lite import ConvNorm

    layer = ConvNorm(1, 1, 3, 2, active=False).eval()
    nn.init.ones_(layer.conv.weight)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    # 4 pixels, stride 2: one zero, at the right and at the bottom alone.
    wanted = torch.tensor([[0 + 1 + 2 + 4 + 5 + 6 + 8 + 9 + 10, 2 + 3 + 6 + 7 + 10 + 11]])
    torch.testing.assert_close(layer(image)[0, 0, :1] * (1 + 1e-3) ** 0.5, wanted.float())
