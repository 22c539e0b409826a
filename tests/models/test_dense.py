"""Libraries' networks for segmentation: they give what the library's own give, at the image's size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fedvision.config import ModelConfig, TransformConfig
from fedvision.errors import ConfigError, PluginError
from fedvision.models import smp_models, torchvision_segmentation, weights_file
from fedvision.models.base import ImageModel
from fedvision.models.build import build_model
from fedvision.models.preprocessing import resolve
from fedvision.models.weights import load_weights
from fedvision.tasks.segmentation import Segmentation

CLASSES = 4
SMALL = "torchvision-segmentation/lraspp_mobilenet_v3_large"
TORCHVISION = [SMALL, "torchvision-segmentation/deeplabv3_mobilenet_v3_large"]
SMP = ["smp/Unet", "smp/FPN", "smp/Linknet", "smp/PSPNet"]


def build(use: str, size: tuple[int, int] = (64, 64), channels: int = 3, **keys: Any) -> ImageModel:
    model = build_model(
        ModelConfig(use=use, args=keys),
        task=Segmentation(),
        num_classes=CLASSES,
        in_channels=channels,
        image_size=size,
        seed=0,
    )
    assert isinstance(model, ImageModel)
    return model.eval()


def own(use: str) -> nn.Module:
    """Return the library's own network with numbers of its own."""
    torch.manual_seed(1)
    name = use.split("/")[1]
    if use.startswith("smp/"):
        network: nn.Module = getattr(smp, name)(
            encoder_name="resnet18", encoder_weights=None, classes=CLASSES
        )
    else:
        keys = {} if "lraspp" in name else {"aux_loss": True}
        network = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=CLASSES, **keys
        )
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("use", [*TORCHVISION, *SMP])
def test_with_a_file_of_the_library_it_gives_what_the_library_gives(use: str, tmp_path: Path) -> None:
    library, model = own(use), build(use)
    state = {name: tensor.clone() for name, tensor in library.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    config = ModelConfig(use=use, weights=str(tmp_path / "net.safetensors"))
    told = load_weights(model, weights_file.read(config), ())
    assert told.notices == ()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = library(x)
        wanted = wanted["out"] if isinstance(wanted, dict) else wanted
        torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=1e-4)
        assert torch.equal(model(x), model.head(model.backbone(x)))


def test_a_head_for_other_classes_begins_anew(tmp_path: Path) -> None:
    library = torchvision.models.get_model(
        SMALL.split("/")[1], weights=None, weights_backbone=None, num_classes=21
    )
    save_file({name: one.clone() for name, one in library.state_dict().items()}, tmp_path / "net.safetensors")
    model = build(SMALL)
    told = load_weights(
        model, weights_file.read(ModelConfig(use=SMALL, weights=str(tmp_path / "net.safetensors"))), ()
    )
    assert "its head has 21 outputs and the network's 4" in told.notices[0]
    first = dict(library.named_parameters())["backbone.0.0.weight"]
    assert torch.equal(dict(model.named_parameters())["backbone.backbone.0.0.weight"], first)


@pytest.mark.slow
@pytest.mark.parametrize("use", [SMALL, "smp/Unet"])
@pytest.mark.parametrize(("size", "channels"), [((40, 50), 1), ((33, 64), 3)])
def test_logits_have_the_size_of_the_image(use: str, size: tuple[int, int], channels: int) -> None:
    model = build(use, size, channels).train()
    logits = model(torch.randn(2, channels, *size))
    assert logits.shape == (2, CLASSES, *size)
    F.cross_entropy(logits, torch.randint(CLASSES, (2, *size))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_weights_of_torchvision_say_how_images_are_normalised() -> None:
    found = torchvision_segmentation.published("deeplabv3_resnet50")
    assert set(found) == {"COCO_WITH_VOC_LABELS_V1"}
    assert found["COCO_WITH_VOC_LABELS_V1"].preprocessing.mean == (0.485, 0.456, 0.406)


def test_a_file_of_the_other_library_needs_mean_and_std(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "net.safetensors")
    config = ModelConfig(use="smp/Unet", weights=str(tmp_path / "net.safetensors"))
    with pytest.raises(ConfigError, match=r"set transforms\.mean and transforms\.std"):
        resolve(TransformConfig(), config, {"": weights_file.read(config)}, (64, 64))


@pytest.mark.parametrize(
    ("use", "keys", "problem"),
    [
        ("smp/Unet", {"encoder_weights": "imagenet"}, "takes no key 'encoder_weights'; the encoder is"),
        ("smp/Unet", {"encoder": "resnet19"}, "encoder = 'resnet19'"),
        ("smp/Uned", {}, "did you mean 'smp/Unet'"),
        (SMALL, {"weights_backbone": "x"}, "takes no key 'weights_backbone'"),
        ("torchvision-segmentation/deeplab", {}, "there is no such model; did you mean 'torchvision-segm"),
    ],
)
def test_keys_and_names_that_are_not_there(use: str, keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(PluginError, match=problem):
        build(use, **keys)


def test_without_the_package_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(PluginError, match=r"needs the package .* pip install 'fedvision\[segmentation\]'"):
        smp_models.names()
