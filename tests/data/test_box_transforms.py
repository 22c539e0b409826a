"""Boxes and maps move as pixels do: by hand, beside painted rectangles, beside torchvision's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as reference

from fedvision.config import TransformConfig
from fedvision.data import transforms
from fedvision.data.box_transforms import LEAST

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
SIZE = (40, 56)
INSIDE = [10.0, 12.0, 22.0, 30.0]


def prepared(**steps: Any) -> transforms.BatchTransform:
    return transforms.prepare(TransformConfig(**steps), 1)


def moved(
    box: list[float], drawn: dict[str, torch.Tensor], size: tuple[int, int] = SIZE, **steps: Any
) -> tuple[list[float], bool]:
    """Return one box of one image, and whether it is kept."""
    corners = torch.tensor([[box]], dtype=torch.float64)
    found, kept = prepared(**steps).apply_to_boxes(corners, torch.tensor([[True]]), drawn, size)
    return found[0, 0].tolist(), bool(kept[0, 0])


def crop_at(top: int, left: int) -> dict[str, torch.Tensor]:
    return {"crop": torch.tensor([[top], [left]])}


def test_flip_and_crop_by_hand() -> None:
    assert moved(INSIDE, {"flip": torch.tensor([True])}, flip=True) == ([34, 12, 46, 30], True)
    assert moved(INSIDE, {"flip": torch.tensor([False])}, flip=True) == (INSIDE, True)
    # Of a padding of 8 the window begins at the top and 15 from the left: 8 down, 7 to the left.
    assert moved(INSIDE, crop_at(0, 15), crop=8) == ([3, 20, 15, 38], True)
    assert moved(INSIDE, crop_at(8, 8), crop=8) == (INSIDE, True)


def test_rotation_by_hand() -> None:
    """A quarter turn counter-clockwise about (20, 20): what is right of the centre comes above it."""
    quarter = {"rotation": torch.tensor([90.0])}
    found, kept = moved([30, 18, 36, 22], quarter, (40, 40), rotation=90.0)
    assert found == pytest.approx([18, 4, 22, 10])
    assert kept
    # By 45 degrees a square about the centre gets wider by the root of 2.
    found, _ = moved([10, 10, 30, 30], {"rotation": torch.tensor([45.0])}, (40, 40), rotation=45.0)
    assert found == pytest.approx([20 - 200**0.5, 20 - 200**0.5, 20 + 200**0.5, 20 + 200**0.5])


def test_a_box_of_which_little_is_left_is_dropped() -> None:
    """8 wide at the left border: shifted by 6 a quarter is left, by 7 an eighth."""
    box = [0.0, 10.0, 8.0, 20.0]
    assert moved(box, crop_at(8, 14), crop=8) == ([0, 10, 2, 20], True)
    assert moved(box, crop_at(8, 15), crop=8) == ([0, 10, 1, 20], False)


def test_a_box_that_is_rotated_out_of_the_image_is_dropped() -> None:
    """By a quarter turn of an image wider than high what is far to the right goes beyond the top."""
    quarter = {"rotation": torch.tensor([90.0])}
    found, kept = moved([56, 10, 66, 30], quarter, (40, 80), rotation=90.0)
    assert found == pytest.approx([30, 0, 50, 4])
    assert kept
    assert moved([58, 10, 68, 30], quarter, (40, 80), rotation=90.0)[1] is False


def test_what_every_step_leaves_is_counted_together() -> None:
    """Half is cut off, then half of the rest is blanked: a quarter is left; one row more and it is less."""
    box, halved = [0.0, 10.0, 8.0, 20.0], crop_at(8, 12)
    for row, enough in ((16, True), (17, False)):
        # A square of 12 from 6 rows above its centre.
        drawn = {**halved, "cutout": torch.tensor([[row - 7], [2]])}
        assert moved(box, drawn, crop=8, cutout=12) == ([0, 10, 4, 20], enough)


def test_cutout_leaves_the_place_of_a_box() -> None:
    """5 of 12 columns are blanked of all rows; then all."""
    box = [10.0, 10.0, 22.0, 20.0]
    assert moved(box, {"cutout": torch.tensor([[15], [25]])}, cutout=20) == (box, True)
    assert moved(box, {"cutout": torch.tensor([[15], [16]])}, cutout=20) == (box, False)
    assert moved(box, {"cutout": torch.tensor([[15], [55]])}, cutout=20) == (box, True)


def test_boxes_are_clipped_also_where_nothing_is_drawn() -> None:
    """An annotation may reach over the border, and decoding may have cut a border off."""
    assert moved([-4.0, -5.0, 12.0, 50.0], {}) == ([0, 0, 12, 40], True)
    assert moved([-12.0, 10.0, 3.0, 20.0], {}) == ([0, 10, 3, 20], False)
    assert moved([60.0, 10.0, 70.0, 20.0], {})[1] is False
    assert moved([5.0, 5.0, 5.0, 9.0], {})[1] is False


def test_padding_places_hold_no_box_whatever_is_in_them() -> None:
    corners = torch.zeros(2, 3, 4, dtype=torch.float64)
    corners[:] = torch.tensor(INSIDE)
    present = torch.tensor([[True, False, True], [False, False, False]])
    _, kept = prepared().apply_to_boxes(corners, present, {}, SIZE)
    assert kept.equal(present)


def everything(seed: int, steps: dict[str, Any], batch: int, size: tuple[int, int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return dict(prepared(**steps).draw(batch, size, generator))


def one_each(boxes: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return corners [B, 1, 4] of images with one box [B, 4] each, and that they hold it."""
    return torch.from_numpy(boxes.astype(np.float64))[:, None], torch.ones(len(boxes), 1, dtype=torch.bool)


def painted(boxes: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Return images [B, 1, H, W] of one white rectangle each."""
    images = torch.zeros(len(boxes), 1, *size)
    for image, (left, top, right, bottom) in zip(images, boxes.astype(int), strict=True):
        image[:, top:bottom, left:right] = 1
    return images


def around(image: torch.Tensor) -> list[int] | None:
    """Return the corners of what is not black."""
    rows, columns = (image.sum(axis) > 0 for axis in (1, 0))
    if not rows.any():
        return None
    (top, *_, bottom), (left, *_, right) = ([*line.nonzero()[:, 0].tolist()] * 2 for line in (rows, columns))
    return [left, top, right + 1, bottom + 1]


def rectangles(rng: np.random.Generator, batch: int, size: tuple[int, int], least: int) -> np.ndarray:
    """Return boxes [B, 4] of whole pixels inside of images."""
    height, width = size
    sides = rng.integers(least, min(size) // 2, (batch, 2))
    corner = rng.integers(0, [width, height] - sides + 1)
    return np.concatenate([corner, corner + sides], axis=1)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.booleans(), st.integers(0, 9), st.integers(0, 11), st.integers(12, 40))
def test_boxes_are_around_the_painted_pixels(
    seed: int, flip: bool, crop: int, cutout: int, wide: int
) -> None:
    """Flip and crop move whole pixels: the box of what is left is exact, and the share to see decides."""
    rng, size, batch = np.random.default_rng(seed), (26, wide), 8
    steps = {"flip": flip, "crop": crop, "cutout": cutout}
    boxes = rectangles(rng, batch, size, 2)
    drawn, transform = everything(seed, steps, batch, size), prepared(**steps)
    found, kept = transform.apply_to_boxes(*one_each(boxes), drawn, size)
    images = painted(boxes, size)
    shown = transform.apply(images, drawn).sum(dim=(1, 2, 3)).numpy()
    drawn.pop("cutout", None)
    assert kept[:, 0].tolist() == (shown >= LEAST * images.sum(dim=(1, 2, 3)).numpy()).tolist()
    for image, box in zip(transform.apply(images, drawn)[:, 0], found[:, 0], strict=True):
        if (seen := around(image)) is not None:
            assert box.tolist() == seen


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.booleans(), st.floats(1, 180))
def test_rotated_boxes_are_around_the_painted_pixels(seed: int, flip: bool, degrees: float) -> None:
    """To a pixel: a corner may be narrower than one. What is rotated out of the image is clipped."""
    rng, size, batch, margin = np.random.default_rng(seed), (48, 64), 8, 40
    steps = {"flip": flip, "crop": 4, "rotation": degrees}
    before = rectangles(rng, batch, size, 8)
    drawn, transform = everything(seed, steps, batch, size), prepared(**steps)
    found, _ = transform.apply_to_boxes(*one_each(before), drawn, size)
    turn = {"rotation": drawn.pop("rotation")}
    left = torch.nn.functional.pad(transform.apply(painted(before, size), drawn), (margin,) * 4)
    # Turned on a larger canvas all sides are to be seen.
    for image, box in zip(transform.apply(left, turn, "nearest")[:, 0], found[:, 0], strict=True):
        if (seen := around(image)) is not None:
            inside = (np.array(seen) - margin).clip(0, [size[1], size[0]] * 2)
            np.testing.assert_allclose(box.numpy(), inside, atol=1)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.floats(-180, 180))
def test_rotation_is_that_of_torchvision(seed: int, degrees: float) -> None:
    rng = np.random.default_rng(seed)
    boxes = rectangles(rng, 6, SIZE, 2).astype(np.float64)
    angle = torch.full((1,), degrees, dtype=torch.float64)
    found, _ = prepared(rotation=180.0).apply_to_boxes(
        torch.from_numpy(boxes)[None], torch.ones(1, 6, dtype=torch.bool), {"rotation": angle}, SIZE
    )
    given_boxes = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=SIZE)
    wanted = reference.clamp_bounding_boxes(reference.rotate(given_boxes, degrees))
    torch.testing.assert_close(found[0], wanted.as_subclass(torch.Tensor), atol=1e-9, rtol=0)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(0, 9))
def test_flip_and_crop_are_those_of_torchvision_for_boxes_and_masks(seed: int, padding: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = torch.from_numpy(rng.uniform(0, 30, (5, 4)).cumsum(1))
    masks = torch.from_numpy(rng.integers(0, 7, (1, *SIZE)).astype(np.uint8))
    top, left = rng.integers(0, 2 * padding + 1, 2).tolist()
    drawn = {"flip": torch.tensor([True]), **crop_at(top, left)}
    transform = prepared(flip=True, crop=padding)
    if not padding:
        del drawn["crop"]
    found, _ = transform.apply_to_boxes(boxes[None], torch.ones(1, 5, dtype=torch.bool), drawn, SIZE)
    given_boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=SIZE, clamping_mode="soft")
    # Ours are clipped before they move as well: what is outside of an image does not come in.
    given_boxes = reference.clamp_bounding_boxes(given_boxes, clamping_mode="hard")
    window = (top, left, *SIZE)
    moves = [
        reference.horizontal_flip,
        lambda x: reference.pad(x, [padding] * 4, fill=0),
        lambda x: reference.crop(x, *window),
    ]
    mask = tv_tensors.Mask(masks)
    for move in moves:
        given_boxes, mask = move(given_boxes), move(mask)
    wanted = reference.clamp_bounding_boxes(given_boxes, clamping_mode="hard")
    torch.testing.assert_close(found[0], wanted.as_subclass(torch.Tensor))
    assert transform.apply_to_map(masks, drawn, fill=0).equal(mask.as_subclass(torch.Tensor))


@pytest.mark.parametrize("fill", [0, 255])
def test_what_comes_into_a_map_from_outside_is_the_fill(fill: int) -> None:
    """The padding of the crop and the square of cutout; all else is what the mask has."""
    masks = torch.randint(1, 200, (1, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    drawn = {**crop_at(0, 3), "cutout": torch.tensor([[20], [30]])}
    found = prepared(crop=3, cutout=4).apply_to_map(masks, drawn, fill)[0]
    wanted = torch.cat([torch.full((3, SIZE[1]), fill, dtype=torch.uint8), masks[0, :-3]])
    wanted[18:22, 28:32] = fill
    assert found.equal(wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_each_image_has_its_own_draws_on_any_device(device: str) -> None:
    """A batch is its images one by one; shape, type and device are those of the boxes."""
    steps = {"flip": True, "crop": 5, "rotation": 30.0, "cutout": 9}
    rng, batch = np.random.default_rng(0), 6
    corners = torch.from_numpy(rectangles(rng, 4 * batch, SIZE, 3).astype(np.float64)).view(batch, 4, 4)
    present = torch.from_numpy(rng.random((batch, 4)) < 0.8)
    drawn, transform = everything(4, steps, batch, SIZE), prepared(**steps)
    found, kept = transform.apply_to_boxes(corners.to(device), present.to(device), drawn, SIZE)
    assert (found.dtype, found.device.type, found.shape) == (torch.float64, device, corners.shape)
    assert not (kept.cpu() & ~present).any()
    for image in range(batch):
        own = {name: values[..., image : image + 1] for name, values in drawn.items()}
        one = slice(image, image + 1)
        alone, left = transform.apply_to_boxes(corners[one], present[one], own, SIZE)
        torch.testing.assert_close(found[one].cpu(), alone, rtol=1e-9, atol=1e-9)
        assert left.equal(kept[one].cpu())
