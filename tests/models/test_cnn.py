"""The tutorial's CNN: its size to the parameter, its function, its rule for small images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.cnn import ConvFeatures, cnn


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_tutorials_network_has_the_tutorials_parameters() -> None:
    assert count(cnn(num_classes=10, in_channels=3, image_size=(32, 32))) == 122_570


def test_parameters_for_fashion_mnist_by_hand() -> None:
    convolutions = (9 * 1 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 64
    dense = (3 * 3 * 64 + 1) * 64 + (64 + 1) * 10  # 28 -> 26 -> 13 -> 11 -> 5 -> 3
    assert count(cnn(num_classes=10, in_channels=1, image_size=(28, 28))) == convolutions + dense


@pytest.mark.parametrize("size", [(4, 4), (5, 40), (8, 8), (17, 17), (17, 18), (18, 18), (19, 23), (64, 32)])
def test_the_grid_is_the_feature_maps_size(size: tuple[int, int]) -> None:
    features = ConvFeatures(1, size, 2)
    assert features(torch.zeros(1, 1, *size)).shape == (1, features.channels, *features.grid)


def test_only_images_below_18_pixels_are_padded() -> None:
    assert ConvFeatures(1, (17, 40), 2).conv1.padding == (1, 1)
    assert ConvFeatures(1, (18, 18), 2).conv1.padding == (0, 0)
    assert ConvFeatures(1, (18, 18), 2).grid == (1, 1)


def test_pooling_before_the_relu_is_the_same_function() -> None:
    features = ConvFeatures(3, (20, 20), 4)
    images = torch.randn(5, 3, 20, 20)
    x = F.max_pool2d(F.relu(features.conv1(images)), 2)
    x = F.max_pool2d(F.relu(features.conv2(x)), 2)
    assert torch.equal(features(images), F.relu(features.conv3(x)))


def test_an_image_too_small_for_two_poolings_is_refused() -> None:
    with pytest.raises(ValueError, match="images must be at least 4 x 4, not 3 x 28"):
        cnn(num_classes=2, in_channels=1, image_size=(3, 28))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"width": 0}, "width must be >= 1, not 0"),
        ({"dense": -1}, "dense must be >= 1, not -1"),
        ({"dropout": 1.0}, "dropout must be >= 0 and < 1, not 1.0"),
    ],
)
def test_keys_out_of_range_are_refused(keys: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        cnn(num_classes=2, in_channels=1, image_size=(8, 8), **keys)  # type: ignore[arg-type]
