"""The strong view: its shape, what it draws, and that nothing is changed where its strength is 0."""

from __future__ import annotations

import pytest
import torch

from fedvision.data.strong_view import strong_view


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(batch: int = 6, channels: int = 3, height: int = 16, width: int = 12) -> torch.Tensor:
    x = torch.randn(batch, channels, height, width, generator=_generator(1))
    return x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (16, 12)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_shape_type_and_the_images_themselves_stay(
    strength: float, size: tuple[int, int], channels: int
) -> None:
    x = _images(4, channels, *size)
    before = x.clone()
    view = strong_view(x, strength, _generator())
    assert (view.shape, view.dtype) == (x.shape, x.dtype)
    assert view.isfinite().all()
    assert torch.equal(x, before)
    assert not torch.equal(view, x)


def test_a_strength_of_zero_draws_nothing_and_returns_the_images() -> None:
    x, generator = _images(), _generator()
    assert strong_view(x, 0.0, generator) is x
    assert torch.equal(generator.get_state(), _generator().get_state())


def test_each_image_has_draws_of_its_own_from_the_generator_alone() -> None:
    x = _images(1).expand(5, -1, -1, -1)
    one, two, other = (strong_view(x, 1.0, _generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert all(not torch.equal(one[0], one[i]) for i in range(1, 5))


def test_contrast_brightness_and_the_square_by_hand() -> None:
    """Of one pixel nothing moves: it is its own mean, so contrast is 1 and brightness alone is left."""
    x = torch.full((200, 1, 1, 1), 2.0)
    change = strong_view(x, 0.5, _generator()).flatten() - 2
    assert change.abs().max() <= 0.25
    assert change.min() < -0.2
    assert change.max() > 0.2
    flat = strong_view(torch.full((50, 2, 16, 16), 3.0), 1.0, _generator())
    blank = (flat == 0).flatten(1).float().mean(1)
    assert blank.min() > 0.0625 - 1e-6, "a quarter of the square of half a side lies inside at least"
    assert blank.max() < 0.5


def test_a_stronger_view_is_further_from_the_image() -> None:
    x = _images(64)
    distances = [float((strong_view(x, s, _generator()) - x).square().mean()) for s in (0.1, 0.4, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] > 0
