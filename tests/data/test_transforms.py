"""Normalisation by hand, each augmentation against its definition, layouts, devices and generators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedvision.config import TransformConfig
from fedvision.data import transforms
from fedvision.errors import ConfigError

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
EVERYTHING: dict[str, Any] = {"flip": True, "crop": 2, "rotation": 20.0, "cutout": 3, "mixup": 0.4}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(batch: int = 5, height: int = 6, width: int = 7, channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (batch, height, width, channels), dtype=torch.uint8, generator=stream(9))


def prepared(channels: int = 3, **settings: Any) -> transforms.BatchTransform:
    return transforms.prepare(TransformConfig(**settings), channels)


def augment(
    transform: transforms.BatchTransform, x: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw and apply at once."""
    return transform.apply(x, transform.draw(len(x), (x.shape[2], x.shape[3]), generator))


def some(batch: int = 5, height: int = 6, width: int = 7, channels: int = 3) -> torch.Tensor:
    return prepared(channels).normalise(pixels(batch, height, width, channels))


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalisation_by_hand(channels_last: bool) -> None:
    image = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    transform = prepared(mean=(0.5, 0.2, 0.0), std=(0.25, 0.4, 0.8))
    x = transform.normalise(image, channels_last=channels_last)
    # (0 - 0.5) / 0.25, (1 - 0.2) / 0.4 and (0.2 - 0) / 0.8.
    torch.testing.assert_close(x, torch.tensor([[[[-2.0]], [[2.0]], [[0.25]]]]))
    assert x.dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalisation_is_the_formula_in_either_layout(
    channels: int, channels_last: bool, device: str
) -> None:
    mean, std = (0.1, 0.3, 0.5, 0.7)[:channels], (0.2, 0.3, 0.4, 0.5)[:channels]
    images = pixels(channels=channels).to(device)
    x = prepared(channels, mean=mean, std=std).normalise(images, channels_last=channels_last)
    plain = (images.permute(0, 3, 1, 2).double() / 255 - x.new_tensor(mean).view(-1, 1, 1)) / x.new_tensor(
        std
    ).view(-1, 1, 1)
    torch.testing.assert_close(x, plain.float(), atol=1e-5, rtol=1e-5)
    assert x.device.type == device
    # By strides and not by is_contiguous, which is true of both layouts where there is one channel.
    area, row = 6 * 7, 7 * channels
    assert x.stride() == (
        (area * channels, 1, row, channels) if channels_last else (area * channels, area, 7, 1)
    )
    assert images.equal(pixels(channels=channels).to(device))


def test_memory_layouts_have_the_same_bits() -> None:
    """Both layouts have the same bits and kernels get the configured one."""
    for channels in (1, 3):
        transform, images = prepared(channels, mean=(0.4914,), std=(0.2471,)), pixels(channels=channels)
        last, first = transform.normalise(images), transform.normalise(images, channels_last=False)
        assert torch.equal(last, first)
        convolve = torch.nn.Conv2d(channels, 4, 3).requires_grad_(False)
        assert convolve(last).stride(1) == 1
        assert convolve(first).stride(3) == 1


def test_one_number_serves_all_channels_and_other_counts_are_refused() -> None:
    images = pixels()
    one, three = prepared(mean=(0.3,), std=(0.2,)), prepared(mean=(0.3,) * 3, std=(0.2,) * 3)
    assert torch.equal(one.normalise(images), three.normalise(images))
    with pytest.raises(
        ConfigError, match=r"transforms\.mean holds 2 numbers for images with 3 channels; wri"
    ):
        prepared(mean=(0.1, 0.2))
    with pytest.raises(ConfigError, match=r"transforms\.std holds 4 numbers for images with 1 channels"):
        prepared(channels=1, std=(0.1, 0.2, 0.3, 0.4))


@pytest.mark.parametrize("channels_last", [True, False])
def test_constants_for_three_channels_show_gray_images_as_colour(channels_last: bool) -> None:
    gray = pixels(channels=1)
    constants = {"mean": (0.1, 0.2, 0.3), "std": (0.5,)}
    transform = prepared(channels=1, **constants)
    found = transform.inputs(gray, channels_last=channels_last)
    colour = gray.expand(-1, -1, -1, 3).contiguous()
    wanted = prepared(channels=3, **constants).inputs(colour, channels_last=channels_last)
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride()
    assert transforms.input_shape(transform.config, (6, 7, 1)) == (3, 6, 7)
    assert transforms.input_shape(TransformConfig(mean=(0.1,)), (6, 7, 1)) == (1, 6, 7)


def test_nothing_switched_on_is_the_same_tensor_and_draws_nothing() -> None:
    generator, x = stream(), some()
    before = generator.get_state()
    assert augment(prepared(), x, generator) is x
    assert prepared().mixup(x, torch.arange(5), generator) is None
    assert generator.get_state().equal(before)


def test_flip_mirrors_exactly_the_selected_images() -> None:
    x = some(batch=3)
    y = transforms.flip(x, torch.tensor([True, False, True]))
    assert torch.equal(y[0], x[0].flip(2))
    assert torch.equal(y[1], x[1])
    assert torch.equal(y[2, :, 0, 0], x[2, :, 0, -1])


def test_flip_is_a_fair_coin_for_each_image() -> None:
    x = torch.arange(2.0).expand(1000, 1, 1, 2)
    flipped = augment(prepared(1, flip=True), x, stream())[:, 0, 0, 0]
    # 1000 coins: 500 +- 16.
    assert 430 < flipped.sum() < 570


def test_crop_is_a_window_of_the_padded_image() -> None:
    x = some(batch=4)
    corner = torch.tensor([[2, 0, 4, 1], [2, 0, 4, 3]])
    y = transforms.crop(x, corner, 2)
    assert torch.equal(y[0], x[0])
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    for image, (top, left) in enumerate(corner.T.tolist()):
        assert torch.equal(y[image], padded[image, :, top : top + 6, left : left + 7])
    assert (y[1, :, :2] == 0).all()
    assert (y[2, :, -2:] == 0).all()


def test_crop_reaches_every_corner() -> None:
    x = torch.zeros(600, 1, 5, 5)
    x[:, :, 2, 2] = 1
    where = {tuple(place.tolist()) for place in augment(prepared(1, crop=1), x, stream()).nonzero()[:, 2:]}
    assert where == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}


def test_rotation_by_zero_and_by_right_angles() -> None:
    x = some(batch=2, height=6, width=6)
    torch.testing.assert_close(transforms.rotate(x, torch.zeros(2)), x, atol=1e-5, rtol=0)
    y = transforms.rotate(x, torch.tensor([90.0, -90.0]))
    torch.testing.assert_close(y[0], torch.rot90(x[0], 1, (1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(y[1], torch.rot90(x[1], -1, (1, 2)), atol=1e-5, rtol=0)


def test_rotation_stays_rigid_where_height_and_width_differ() -> None:
    x = some(batch=1, height=5, width=9)
    turned = transforms.rotate(x, torch.tensor([180.0]))
    torch.testing.assert_close(turned, torch.rot90(x, 2, (2, 3)), atol=1e-5, rtol=0)
    # A quarter turn keeps the 5 x 5 square in the middle and leaves black beside it.
    quarter = transforms.rotate(x, torch.tensor([90.0]))
    torch.testing.assert_close(quarter[..., 2:7], torch.rot90(x[..., 2:7], 1, (2, 3)), atol=1e-5, rtol=0)
    assert quarter[..., :2].abs().max() < 1e-5


def test_rotation_turns_each_image_by_its_own_angle_within_the_limit() -> None:
    # A point at the right end: its new row is the sine of the angle, counter-clockwise is up.
    x = torch.zeros(50, 1, 101, 101)
    x[:, :, 48:53, 96:101] = 1
    y = augment(prepared(1, rotation=10.0), x, stream())
    rows = torch.arange(101.0).view(1, 1, -1, 1)
    heights = 50 - (y * rows).sum((1, 2, 3)) / y.sum((1, 2, 3))
    degrees = torch.rad2deg(torch.asin(heights / 48))
    assert degrees.abs().max() < 10.5
    assert degrees.min() < -5
    assert degrees.max() > 5


def test_cutout_blanks_a_square_that_the_border_may_cut() -> None:
    x = torch.ones(4, 2, 8, 9)
    y = transforms.cutout(x, torch.tensor([[4, 0, 7, 3], [4, 0, 8, 0]]), 4)
    assert (y == 0).sum((1, 2, 3)).tolist() == [2 * 16, 2 * 4, 2 * 9, 2 * 8]
    assert (y[0, :, 2:6, 2:6] == 0).all()
    assert (x == 1).all()
    assert (transforms.cutout(x, torch.tensor([[4] * 4, [4] * 4]), 3) == 0).sum() == 4 * 2 * 9


def test_cutout_centres_are_anywhere() -> None:
    y = augment(prepared(1, cutout=1), torch.ones(800, 1, 4, 5), stream())
    assert (y == 0).sum((1, 2, 3)).eq(1).all()
    # Each of 20 places 40 times, +- 6.
    times = (y == 0).sum((0, 1))
    assert times.min() > 15
    assert times.max() < 75


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_is_convex_and_names_the_partner(alpha: float) -> None:
    x, labels = some(batch=8), torch.arange(8)
    mixed = prepared(mixup=alpha).mixup(x, labels, stream(3))
    assert mixed is not None
    y, other, weight = mixed
    assert 0 <= weight <= 1
    assert sorted(other.tolist()) == list(range(8))
    torch.testing.assert_close(y, weight * x + (1 - weight) * x[other])


def test_mixup_weights_are_beta() -> None:
    transform, generator, x = prepared(1, mixup=2.0), stream(), torch.zeros(2, 1, 1, 1)
    drawn = [transform.mixup(x, torch.arange(2), generator) for _ in range(1000)]
    weights = np.array([mixed[2] for mixed in drawn if mixed is not None])
    # Beta(2, 2): mean 1/2, variance 1/20.
    assert abs(weights.mean() - 0.5) < 0.03
    assert abs(weights.var() - 0.05) < 0.006


def test_balanced_partners_have_each_class_of_the_batch_equally_often() -> None:
    labels, generator = torch.tensor([4] * 12 + [0] * 3 + [9]), stream(2)
    drawn = torch.cat([transforms.balanced_partners(labels, generator) for _ in range(500)])
    times = drawn.bincount(minlength=16).double()
    # 8000 draws: a class has 2667 +- 42, its images equal shares.
    by_class = torch.stack([times[:12].sum(), times[12:15].sum(), times[15]])
    assert (by_class - 8000 / 3).abs().max() < 4 * 42.2
    assert (times[:12] - 8000 / 36).abs().max() < 4 * 14.7
    one = torch.zeros(16, dtype=torch.int64)
    alike = torch.cat([transforms.balanced_partners(one, generator) for _ in range(500)]).bincount()
    assert (alike - 500).abs().max() < 4 * 21.7


def test_balanced_mixup_is_convex_and_its_partners_share_is_beta() -> None:
    transform = prepared(1, mixup=0.25, mixup_partner="balanced")
    x, labels, generator = some(8, channels=1), torch.tensor([0] * 6 + [1, 2]), stream(1)
    shares = []
    for _ in range(1500):
        mixed = transform.mixup(x, labels, generator)
        assert mixed is not None
        y, other, weight = mixed
        shares.append(1 - weight)
    assert set(other.tolist()) <= {0, 1, 2}
    assert y.shape == x.shape
    # Beta(a, 1): mean a / (a + 1) = 1/5, variance a / ((a + 1)^2 (a + 2)).
    assert abs(np.mean(shares) - 0.2) < 4 * np.sqrt(0.25 / (1.25**2 * 2.25) / 1500)
    # The partner and the loss's other label are one image: one of class 1 or 2 stands alone.
    mixed = transform.mixup(x, torch.arange(8), generator)
    assert mixed is not None
    y, other, weight = mixed
    torch.testing.assert_close(y, weight * x + (1 - weight) * x[other])


def test_a_partner_without_mixup_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^transforms\.mixup_partner is 'balanced' and transforms\.mixup is 0"
    ):
        TransformConfig(mixup_partner="balanced")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("only", [*EVERYTHING, None])
def test_layout_type_and_device_are_kept_and_the_generator_decides(
    only: str | None, channels_last: bool, channels: int, device: str
) -> None:
    settings = EVERYTHING if only is None else {only: EVERYTHING[only]}
    transform, labels = prepared(channels, **settings), torch.arange(16, device=device)
    images = pixels(batch=16, channels=channels).to(device)
    x = transform.normalise(images, channels_last=channels_last)
    untouched = x.clone()

    def run(seed: int) -> torch.Tensor:
        generator = stream(seed)
        y = augment(transform, x, generator)
        mixed = transform.mixup(y, labels, generator)
        return y if mixed is None else mixed[0]

    one = run(1)
    assert (one.shape, one.dtype, one.device) == (x.shape, x.dtype, x.device)
    assert one.stride() == x.stride()
    assert torch.equal(one, run(1))
    assert not torch.equal(one, run(2))
    assert torch.equal(x, untouched)


@pytest.mark.parametrize("device", DEVICES)
def test_devices_agree(device: str) -> None:
    transform = prepared(**EVERYTHING)
    on_cpu = augment(transform, transform.normalise(pixels()), stream())
    there = augment(transform, transform.normalise(pixels().to(device)), stream())
    torch.testing.assert_close(there.cpu(), on_cpu, atol=1e-4, rtol=0)


@pytest.mark.parametrize("key", ["crop", "cutout"])
def test_augmentation_that_leaves_nothing_is_refused(key: str) -> None:
    transforms.check_size(TransformConfig(**{key: 15}), (16, 28))
    with pytest.raises(ConfigError, match=f"transforms.{key} is 16 pixels of images of 16 x 28"):
        transforms.check_size(TransformConfig(**{key: 16}), (16, 28))


@pytest.mark.parametrize("mean", [0.5, 0.2861])
def test_padding_has_the_configured_mean(mean: float) -> None:
    transform = transforms.prepare(TransformConfig(mean=(mean,), std=(0.25,), crop=3), 1)
    x = transform.normalise(torch.full((8, 8, 8, 1), 200, dtype=torch.uint8))
    pixels = (augment(transform, x, torch.Generator().manual_seed(0)) * 0.25 + mean) * 255
    assert float(pixels.min()) == pytest.approx(255 * mean)
