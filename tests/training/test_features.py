"""Features of a frozen backbone: the same bits whatever images are beside an image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision import registry, seeding
from fedvision.config import TransformConfig
from fedvision.data.transforms import prepare
from fedvision.errors import ConfigError
from fedvision.models.base import ImageModel
from fedvision.tasks.classification import Classification
from fedvision.training.features import FeatureExtractor
from fedvision.training.forward import ForwardSettings
from fedvision.types import PluginSpec


def settings(precision: str = "float32") -> ForwardSettings:
    return ForwardSettings(
        task=Classification(),
        transform=prepare(TransformConfig(), 3),
        device=torch.device("cpu"),
        precision=precision,  # type: ignore[arg-type]
    )


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), np.uint8)


def features(extract: FeatureExtractor, images: NDArray[np.uint8]) -> torch.Tensor:
    """Return the features [N, D] of images [N, ...]."""
    return torch.cat([found for _, found in extract.each(lambda some: images[some], np.arange(len(images)))])


def backbone(use: str, **arguments: object) -> nn.Module:
    with seeding.torch_global(0, "model"):
        model: ImageModel = registry.build(
            "model", PluginSpec(use=use, args=arguments), num_classes=5, in_channels=3, image_size=(32, 32)
        )
    settings().place(model)
    return model.backbone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "arguments"),
    [
        ("cnn", {"dropout": 0.5}),
        ("resnet8", {}),
        ("resnet8-wide", {}),
        ("rnn", {}),
        ("vit", {"dropout": 0.2}),
        ("fusion", {"patch": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_image_has_the_same_bits_in_any_batch(use: str, arguments: dict[str, object]) -> None:
    extract, images = FeatureExtractor(backbone(use, **arguments), settings()), pictures(21)
    found = features(extract, images)
    assert found.shape[0] == 21
    assert found.std() > 0
    rng = np.random.default_rng(2)
    for _ in range(4):
        order = rng.permutation(21)
        assert torch.equal(features(extract, images[order]), found[order])
    for number in (0, 20):
        assert torch.equal(features(extract, images[[number]]), found[[number]])
    both = list(extract.each(lambda numbers: images[numbers], np.arange(21)[::-1].copy()))
    assert np.array_equal(np.concatenate([numbers for numbers, _ in both]), np.arange(21)[::-1])
    assert torch.equal(torch.cat([row for _, row in both]), found.flip(0))


@pytest.mark.parametrize(("side", "batch"), [(32, 16), (128, 16), (129, 8), (224, 4), (1000, 1)])
def test_batches_are_as_large_as_the_images_allow(side: int, batch: int) -> None:
    """By the size that the network sees and by nothing else: the bits of features depend on it."""
    seen: list[int] = []

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return x.mean((2, 3))

    resized = replace(settings(), transform=prepare(TransformConfig(size=side), 3))
    assert features(FeatureExtractor(Mean(), resized), pictures(19)).shape == (19, 3)
    assert seen == [batch] * -(-19 // batch)


def test_views_are_drawn_by_the_number_of_an_image() -> None:
    config = TransformConfig(flip=True, crop=3, rotation=20.0, cutout=5)
    drawn = replace(settings(), transform=prepare(config, 3))
    network, images = backbone("resnet8"), pictures(11)

    def views(numbers: NDArray[np.int64], seed: int = 7) -> torch.Tensor:
        found = FeatureExtractor(network, drawn, 2, seed).each(lambda some: images[some], numbers)
        return torch.cat([rows for _, rows in found])

    found = views(np.arange(11))
    assert found.shape[:2] == (11, 3)
    assert torch.equal(found[:, 0], features(FeatureExtractor(network, settings()), images))
    order = np.random.default_rng(0).permutation(11)
    assert torch.equal(views(order), found[order])
    assert torch.equal(views(np.array([10])), found[10:])
    assert not torch.equal(views(np.array([10]), seed=8)[:, 1:], found[10:, 1:])
    for view in (1, 2):
        what = drawn.transform.draw(1, (32, 32), seeding.torch_stream(7, "view", view, 10))
        with torch.no_grad():
            expected = network(drawn.transform.apply(drawn.inputs(torch.from_numpy(images[[10]])), what))
        assert torch.allclose(found[10, view], expected[0], atol=1e-5)
        assert not torch.allclose(found[10, view], found[10, 0], atol=1e-3)


def test_features_are_those_of_the_network_in_evaluation() -> None:
    network = backbone("resnet8-wide").train()
    images = pictures(10)
    found = features(FeatureExtractor(network, settings()), images)
    assert not network.training
    with torch.no_grad():
        expected = network.eval()(settings().inputs(torch.from_numpy(images)))
    assert torch.allclose(found, expected, atol=1e-5)


def test_features_in_bfloat16_are_kept_in_float32() -> None:
    found = features(FeatureExtractor(backbone("cnn"), settings("bfloat16")), pictures(3))
    assert found.dtype == torch.float32
    assert not torch.equal(found, features(FeatureExtractor(backbone("cnn"), settings()), pictures(3)))


def test_threads_are_as_many_as_before() -> None:
    before = torch.get_num_threads()
    images = pictures(9)
    for _ in FeatureExtractor(backbone("cnn"), settings()).each(
        lambda numbers: images[numbers], np.arange(9)
    ):
        pass
    assert torch.get_num_threads() == before


def test_an_error_in_one_thread_is_raised() -> None:
    def images(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        if 30 in numbers:
            raise OSError("unreadable")
        return pictures(len(numbers))

    with pytest.raises(OSError, match="unreadable"):
        list(FeatureExtractor(backbone("cnn"), settings()).each(images, np.arange(64)))


def test_a_map_of_features_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"makes \[3, 32, 32\] of it; let the backbone flatten"):
        features(FeatureExtractor(nn.Identity(), settings()), pictures(2))
