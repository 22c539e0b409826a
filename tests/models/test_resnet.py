"""Residual networks: sizes by hand, torchvision as the reference, norms."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from fedvision.models.resnet import ResidualFeatures, resnet8, resnet8_wide, resnet18, resnet20

CIFAR = {"num_classes": 10, "in_channels": 3, "image_size": (32, 32)}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def by_hand(blocks: int) -> int:
    """Return the parameters of three stages of 16, 32, 64 channels with that many blocks each."""
    conv = lambda inputs, outputs, size=9: inputs * outputs * size  # noqa: E731
    norm = lambda channels: 2 * channels  # noqa: E731
    total = conv(3, 16) + norm(16) + (64 + 1) * 10
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        total += conv(inputs, outputs) + (2 * blocks - 1) * conv(outputs, outputs)
        total += 2 * blocks * norm(outputs)
        total += conv(inputs, outputs, 1) + norm(outputs) if inputs != outputs else 0
    return total


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_parameters_by_hand(norm: str) -> None:
    assert by_hand(1) == 78_042
    assert by_hand(3) == 272_474
    assert count(resnet8(**CIFAR, norm=norm)) == 78_042
    assert count(resnet8_wide(**CIFAR, norm=norm)) == 1_227_594
    assert count(resnet20(**CIFAR, norm=norm)) == 272_474
    assert count(resnet18(**CIFAR, norm=norm)) == 11_173_962


def test_resnet18_is_torchvisions_with_the_small_stem() -> None:
    reference = torchvision.models.resnet18(num_classes=10)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    ours = resnet18(**CIFAR, norm="batch")
    weights = [tensor for tensor in reference.state_dict().values()]
    assert [tensor.shape for tensor in ours.state_dict().values()] == [tensor.shape for tensor in weights]
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours.eval()(images), reference.eval()(images))


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (33, 20)])
def test_the_grid_is_the_feature_maps_size(size: tuple[int, int]) -> None:
    features = ResidualFeatures(1, size, (1, 1, 1, 1), nn.BatchNorm2d, 2)
    assert features(torch.zeros(2, 1, *size)).shape == (2, features.channels, *features.grid)


def test_group_norm_has_the_given_groups_and_no_statistics() -> None:
    model = resnet8(**CIFAR, groups=4)
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 9
    assert {norm.num_groups for norm in norms} == {4}
    assert not list(model.buffers())


def test_wrong_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="groups = 3 does not divide width = 16"):
        resnet8(**CIFAR, groups=3)
    with pytest.raises(
        ValueError, match=r"norm must be one of 'group', 'batch', not 'bach'; did you mean 'batch'\?"
    ):
        resnet8(**CIFAR, norm="bach")
    with pytest.raises(ValueError, match="width must be >= 1, not 0"):
        resnet20(**CIFAR, width=0)
