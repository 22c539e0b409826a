"""The GAN's networks: sizes of images, values in range, and what an image depends on."""

from __future__ import annotations

import pytest
import torch

from fedvision.models.generator import Discriminator, GanShape, Generator


def pair(**changes: int) -> tuple[Generator, Discriminator]:
    numbers = {"classes": 3, "channels": 1, "height": 28, "width": 28, "noise": 4, "maps": 4} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = GanShape(**numbers)
        return Generator(shape), Discriminator(shape)


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(1, 28, 28), (3, 32, 32), (3, 30, 45), (1, 8, 8), (1, 4, 5)]
)
def test_images_have_the_size_of_the_data(channels: int, height: int, width: int) -> None:
    generator, discriminator = pair(channels=channels, height=height, width=width)
    labels = torch.tensor([0, 2])
    images = generator(torch.randn(2, 4), labels)
    assert images.shape == (2, channels, height, width)
    assert bool(((images >= 0) & (images <= 1)).all())
    assert discriminator(images, labels).shape == (2,)


def test_an_image_depends_on_its_own_noise_and_class_alone() -> None:
    generator, _ = pair()
    noise, labels = torch.randn(3, 4), torch.tensor([0, 1, 1])
    together = generator(noise, labels)
    torch.testing.assert_close(generator(noise[1:2], labels[1:2]), together[1:2])
    assert not torch.allclose(generator(noise[1:2], labels[:1]), together[1:2])
    assert not torch.allclose(together[1], together[2])


def test_a_class_has_a_part_in_the_judgement() -> None:
    """The class's vector begins at 0: at first all classes are judged alike."""
    _, discriminator = pair()
    images = torch.rand(1, 1, 28, 28).expand(2, -1, -1, -1)
    first = discriminator(images, torch.tensor([0, 1]))
    assert first[0] == first[1]
    with torch.no_grad():
        discriminator.embedding.weight[1] = 1.0
    moved = discriminator(images, torch.tensor([0, 1]))
    assert moved[0] == first[0]
    assert moved[1] != first[1]


def test_numbers_of_a_shape_come_back() -> None:
    shape = GanShape(classes=3, channels=1, height=9, width=7)
    assert GanShape.of(shape.numbers()) == shape
    with pytest.raises(KeyError):
        GanShape.of({"classes": 3.0})
