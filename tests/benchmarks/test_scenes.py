"""Composed scenes: what is said of them is what their pixels show, and a seed gives the same bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision.data.boxes import are_boxes, class_table, present
from fedvision.data.dataset import Dataset
from fedvision.errors import DataError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "tasks"))

import scenes
from scenes import Material

CLASSES = ("disc", "bar", "ring")
ODDS = np.array([1.0, 1.0, 1.0])


def material(each: int = 3, seed: int = 0) -> Material:
    """Return a disc of gray 200, a bar of 120 and a ring of 60, on noise that a photograph stands for."""
    y, x = np.mgrid[:28, :28] - 13.5
    radius = np.hypot(y, x)
    shapes = (200 * (radius < 10), 120 * ((np.abs(y) < 4) & (np.abs(x) < 12)), 60 * (np.abs(radius - 8) < 3))
    objects = np.repeat(np.array(shapes, np.uint8), each, axis=0)
    photographs = np.random.default_rng(seed).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    return Material(objects=objects, labels=np.repeat(np.arange(3), each), photographs=photographs)


def composed(number: int = 40, odds: np.ndarray = ODDS, **changed: Any) -> scenes.Scenes:
    return scenes.compose(material(), number, odds, **({"size": 96, "seed": 1, "part": "train"} | changed))


@pytest.fixture(autouse=True)
def small_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "sources", lambda validation: (material(), material(seed=5), CLASSES))


def test_boxes_and_areas_are_of_the_pixels_that_are_seen() -> None:
    made = composed()
    for mask, boxes in zip(made.masks, made.boxes, strict=True):
        assert 1 <= len(boxes) <= scenes.MOST
        # A mask tells classes and not objects: the boxes of a class together are those of its pixels.
        for label in range(3):
            own = boxes[boxes[:, 0] == label]
            rows, columns = np.nonzero(mask == label + 1)
            assert own[:, 5].sum() == len(rows)
            if len(own):
                assert own[:, 1].min() == columns.min()
                assert own[:, 2].min() == rows.min()
                assert (own[:, 1] + own[:, 3]).max() == columns.max() + 1
                assert (own[:, 2] + own[:, 4]).max() == rows.max() + 1
        assert set(np.unique(mask)) == {0, *(boxes[:, 0] + 1)}


def test_objects_are_seen_in_their_own_gray_where_the_mask_says() -> None:
    made = composed()
    for image, mask in zip(made.images, made.masks, strict=True):
        for value, gray in ((1, 200), (2, 120)):
            # Not at the edge, where what is behind shines through.
            around = np.lib.stride_tricks.sliding_window_view(mask == value, (5, 5))
            inside = np.pad(around.all((2, 3)), 2)
            assert np.all(np.abs(image[inside].astype(int) - gray) <= 2)  # both layers are rounded


def test_objects_are_as_large_as_said_and_hidden_little() -> None:
    made = composed(number=300)
    boxes = np.concatenate(made.boxes)
    longer = boxes[:, 3:5].max(1)
    assert longer.max() <= 40
    # A disc alone is as large as it was made; one that is hidden in part has 70 % of that at least.
    alone = np.concatenate([one for one in made.boxes if len(one) == 1])
    assert alone[:, 3:5].max(1).min() >= 16
    discs = boxes[boxes[:, 0] == 0]
    assert (discs[:, 5] >= 0.7 * 0.7 * discs[:, 3] * discs[:, 4]).all()


def test_an_object_is_put_only_where_it_leaves_seven_tenths_of_each_other_one() -> None:
    image, owner = np.zeros((30, 30, 3), np.uint8), np.zeros((30, 30), np.uint8)
    square = np.full((20, 20), 255, np.uint8)
    areas = [scenes.paste(image, owner, [], square, square, np.random.default_rng(0))]
    assert areas == [400]
    for seed in range(30):
        own = owner.copy()
        if scenes.paste(image.copy(), own, areas, square, square, np.random.default_rng(seed)):
            assert np.count_nonzero(own == 1) >= 280
    # On a canvas of its own size it would hide all.
    full = np.ones((20, 20), np.uint8)
    assert scenes.paste(image[:20, :20], full, [400], square, square, np.random.default_rng(0)) == 0
    assert (full == 1).all()


def test_faint_single_pixels_are_no_part_of_an_object() -> None:
    picture = np.zeros((6, 6), np.uint8)
    picture[1:3, 1:3] = 2  # a dark garment
    picture[4, 3] = 40  # a thin strap
    picture[0, 5] = picture[5, 0] = 3  # specks
    assert np.argwhere(scenes.silhouette(picture)).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2], [4, 3]]


def test_a_seed_gives_the_same_scenes_and_fewer_are_the_first_of_more() -> None:
    one, other = composed(number=12), composed(number=30)
    np.testing.assert_array_equal(one.images, other.images[:12])
    np.testing.assert_array_equal(one.masks, other.masks[:12])
    np.testing.assert_array_equal(np.concatenate(one.boxes), np.concatenate(other.boxes[:12]))
    assert not np.array_equal(one.images, composed(number=12, seed=2).images)
    assert not np.array_equal(one.masks, composed(number=12, part="test").masks)


@pytest.mark.slow
def test_classes_have_a_long_tail_for_training_and_none_for_measuring() -> None:
    made = scenes.detection(scenes=900, imbalance=16, size=48)
    assert made.test is not None
    train, test = (class_table(part.labels, 3).sum(0) for part in (made.train, made.test))
    np.testing.assert_allclose(train / train.sum(), np.array([16, 4, 1]) / 21, atol=0.03)
    np.testing.assert_allclose(test / test.sum(), 1 / 3, atol=0.03)
    assert len(made.test) == 450


def test_the_three_targets_are_of_the_same_scenes() -> None:
    made = [
        factory(scenes=20, size=48) for factory in (scenes.detection, scenes.segmentation, scenes.multi_label)
    ]
    parts: list[list[Any]] = [[one.train, one.test] for one in made]
    for boxes, masks, labels in zip(*parts, strict=True):
        np.testing.assert_array_equal(boxes.images, masks.images)
        np.testing.assert_array_equal(boxes.images, labels.images)
        assert are_boxes(boxes.labels)
        table = class_table(boxes.labels, 3)
        assert present(boxes.labels).sum() == table.sum()
        assert masks.labels.dtype == labels.labels.dtype == np.uint8
        np.testing.assert_array_equal(labels.labels, table > 0)
        np.testing.assert_array_equal(
            labels.labels, [[(mask == label).any() for label in (1, 2, 3)] for mask in masks.labels]
        )
    assert made[0].classes == made[2].classes == CLASSES
    assert made[1].classes == ("background", *CLASSES)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scenes": 0}, "scenes"),
        ({"imbalance": 0.5}, "imbalance"),
        ({"size": 8}, "size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_numbers_out_of_range(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scenes.multi_label(**given)


def test_a_class_without_objects_is_said() -> None:
    with pytest.raises(DataError, match="no object of class 3"):
        composed(odds=np.ones(4))


@pytest.mark.slow
@pytest.mark.real_data
def test_validation_takes_scenes_of_training_images_that_no_other_scene_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fashion_mnist_root: Path
) -> None:
    monkeypatch.undo()
    photographs = np.arange(20, dtype=np.uint8).repeat(32 * 32 * 3).reshape(20, 32, 32, 3)
    np.savez(tmp_path / "cifar10.npz", train_images=photographs, test_images=photographs[:5] + 100)
    monkeypatch.setenv("FEDVISION_DATA", str(tmp_path))
    monkeypatch.setattr(scenes.environments, "images", lambda: fashion_mnist_root)
    plain, test, names = scenes.sources()
    kept, measured, _ = scenes.sources(0.1)
    assert (len(plain.labels), len(test.labels), len(names)) == (60_000, 10_000, 10)
    assert np.bincount(measured.labels).tolist() == [600] * 10
    assert len(kept.labels) + len(measured.labels) == 60_000
    assert measured.photographs.max(axis=(1, 2, 3)).tolist() == [18, 19]
    assert len(kept.photographs) == 18
    assert test.photographs.min() == 100
    with pytest.raises(DataError, match="less than one photograph"):
        scenes.sources(0.001)


def test_a_guests_file_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedvision import registry
    from fedvision.types import PluginSpec

    monkeypatch.setattr(scenes, "sources", lambda validation: (material(), material(), CLASSES))
    made = registry.build("data", PluginSpec(use="scenes:multi_label", args={"scenes": 4, "size": 32}))
    assert isinstance(made, Dataset)
    assert len(made.train) == 4
