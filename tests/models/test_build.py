"""Building from a specification: plug-ins' factories, gray images, and what the trial refuses."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from fedvision.config import ModelConfig
from fedvision.errors import ConfigError, PluginError
from fedvision.models.base import ImageModel, halves
from fedvision.models.build import build_model
from fedvision.models.gray import Gray
from fedvision.tasks.classification import Classification
from fedvision.tasks.segmentation import Segmentation


class Linear(nn.Module):
    """A plug-in's class that names what it needs."""

    def __init__(self, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels * image_size[0] * image_size[1], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.head(images.flatten(1))
        return logits


def colour(**keys: Any) -> nn.Module:
    """A network for colour that takes any key, as torchvision's do."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(keys["num_classes"])
    )


def colour_halves(num_classes: int) -> nn.Module:
    """A network for colour of backbone and head."""
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ImageModel(backbone, nn.Linear(4, num_classes))


def gray_to_colour() -> nn.Module:
    """A network with a convolution for colour that makes colour of gray images itself."""
    return nn.Sequential(nn.Conv2d(1, 3, 1), colour(num_classes=10))


def too_deep() -> nn.Module:
    """A network for colour whose pooling leaves nothing of a small image."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(16), nn.Flatten(), nn.LazyLinear(10))


def four_channels() -> nn.Module:
    """A network for images of four channels."""
    return nn.Sequential(nn.Conv2d(4, 3, 3), nn.Flatten(), nn.LazyLinear(10))


def thousand() -> nn.Module:
    """A network that always has 1000 classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1000))


class Auxiliary(Linear):
    """A network that returns two outputs in training."""

    def forward(self, images: torch.Tensor) -> Any:
        """Return logits, or two of them."""
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class Dividing(Linear):
    """A network whose first logits are infinite."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return super().forward(images) / 0


class Exploding(Linear):
    """A network that cannot work on what it gets."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raise."""
        raise RuntimeError("kernel size can't be greater than the input\nsecond line")


def no_module() -> int:
    """No network at all."""
    return 3


def offline() -> nn.Module:
    """A factory that wants the network."""
    raise OSError("no route to host")


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that a person put beside the experiment."""
    module = ModuleType("plugins")
    for thing in (
        four_channels,
        Linear,
        colour,
        colour_halves,
        gray_to_colour,
        too_deep,
        thousand,
        Auxiliary,
        Dividing,
        Exploding,
        no_module,
        offline,
    ):
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "plugins", module)


def build(use: str, channels: int = 1, classes: int = 10, side: int = 8, **keys: Any) -> nn.Module:
    config = ModelConfig(use=use, args=keys)
    return build_model(
        config,
        task=Classification(),
        num_classes=classes,
        in_channels=channels,
        image_size=(side, side),
        seed=3,
    )


def test_a_plugin_gets_what_it_names() -> None:
    model = build("plugins:Linear", channels=2, classes=4)
    assert list(model.state_dict()) == ["head.weight", "head.bias"]
    assert model(torch.zeros(1, 2, 8, 8)).shape == (1, 4)


def test_a_factory_of_any_key_gets_the_number_of_classes() -> None:
    assert not isinstance(build("plugins:colour", channels=3), Gray)


def test_gray_images_are_shown_in_colour() -> None:
    model = build("plugins:colour")
    assert isinstance(model, Gray)
    assert next(iter(model.state_dict())) == "network.0.weight"
    images = torch.randn(2, 1, 8, 8)
    expected = model.eval().network(torch.cat([images] * 3, dim=1))
    torch.testing.assert_close(model(images), expected)


def test_a_gray_backbone_keeps_its_head_apart() -> None:
    model = halves(build("plugins:colour_halves"), "this test").eval()
    names = ["backbone.network.0.weight", "backbone.network.0.bias", "head.weight", "head.bias"]
    assert list(model.state_dict()) == names
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(images), model.head(model.backbone(images)))


def test_what_needs_backbone_and_head_refuses_a_network_without_them() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^\[algorithm\] use = 'x' needs a network of backbone and head, .* a Linear; let its",
    ):
        halves(build("plugins:Linear"), "[algorithm] use = 'x'")


def test_a_network_that_takes_gray_images_gets_them() -> None:
    assert not isinstance(build("plugins:gray_to_colour"), Gray)


def test_a_network_for_neither_gray_nor_colour_is_refused_as_it_is() -> None:
    with pytest.raises(ConfigError, match="4 channels, but got 1 channels"):
        build("plugins:four_channels")


def test_colour_images_never_become_something_else() -> None:
    with pytest.raises(ConfigError, match=r"8 x 8 with 2 channel\(s\) in evaluation: .*3 channels"):
        build("plugins:colour", channels=2)


def test_torchvisions_networks_work_on_gray_images() -> None:
    model = build("torchvision.models:mobilenet_v3_small", side=32)
    assert isinstance(model, Gray)
    assert model.network.classifier[-1].out_features == 10  # type: ignore[union-attr, index]
    colour_model = build("torchvision.models:resnet18", channels=3, classes=7, side=32)
    assert isinstance(colour_model, torchvision.models.ResNet)
    assert colour_model.fc.out_features == 7


def test_the_trial_leaves_statistics_and_generators_as_they_were() -> None:
    before = torch.random.get_rng_state()
    model = build("plugins:colour")
    assert torch.equal(torch.random.get_rng_state(), before)
    norm = model.network[1]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked == 0
    assert norm.running_mean is not None
    assert not norm.running_mean.any()
    assert all(module.training for module in model.modules())


def test_the_trial_does_not_change_the_first_weights() -> None:
    first, again = build("plugins:colour"), build("plugins:colour")
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        ("plugins:thousand", r"it returns \[2, 1000\], not \[2, 10\] logits .* num_classes"),
        ("plugins:Auxiliary", "it returns a tuple, not"),
        ("plugins:Dividing", "not finite"),
        ("plugins:too_deep", "Output size is too small"),
        ("plugins:Exploding", r"images of 8 x 8 with 1 channel\(s\) in evaluation: kernel size .* input$"),
    ],
)
def test_a_misfit_is_refused_in_one_sentence(use: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\[model\] use = '{use}': .*{sentence}"):
        build(use)


@pytest.mark.parametrize(
    ("use", "keys", "sentence"),
    [
        ("plugins:no_module", {}, "it returns int, not a torch.nn.Module"),
        ("plugins:offline", {}, "building it failed: OSError: no route to host"),
        ("plugins:Linear", {"num_classes": 4}, "it takes no key 'num_classes'"),
        ("plugins:colour", {"num_classes": 4}, "it takes no key 'num_classes'"),
        ("cnn", {"widht": 4}, "it takes no key 'widht'; did you mean 'width'"),
        ("cnn", {"trian": "head"}, "it takes no key 'trian'; did you mean 'train'"),
        ("vit", {"patch": 3}, "patch = 3 does not divide an image of 8 x 8; the nearest that does is 2"),
        ("fusion", {"width": "wide"}, "width must be int or None"),
    ],
)
def test_a_wrong_factory_or_key_is_refused(use: str, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        build(use, **keys)


@pytest.mark.parametrize(
    ("use", "task"),
    [
        ("unet", "segmentation"),
        ("semantic-fpn", "segmentation"),
        ("torchvision-segmentation/lraspp_mobilenet_v3_large", "segmentation"),
        ("fcos", "detection"),
    ],
)
def test_a_network_of_another_task_is_refused_with_the_task(use: str, task: str) -> None:
    with pytest.raises(ConfigError, match=f"it is a network for {task}; set task.use = '{task}', or take an"):
        build(use, channels=3, side=32)


class LargerMasks(Segmentation):
    """A segmentation that no network of segmentation fits."""

    def check_outputs(self, outputs: Any, images: torch.Tensor, num_classes: int) -> str | None:
        """Return that they do not fit."""
        return "its masks are too small"


def test_a_network_of_the_very_task_is_refused_for_what_is_wrong_with_it() -> None:
    with pytest.raises(ConfigError, match=r"'unet': its masks are too small$"):
        build_model(
            ModelConfig(use="unet", args={"width": 4}),
            task=LargerMasks(),
            num_classes=3,
            in_channels=1,
            image_size=(16, 16),
            seed=0,
        )
