"""Masks as targets: what is counted, how images are spread, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision.data import masks, targets
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.relabel import by_name, relabel
from fedvision.errors import DataError

SHOWN = np.array([[[0, 0], [0, 1]], [[0, 255], [2, 0]], [[0, 1], [1, 1]], [[255] * 2] * 2], np.uint8)
"""Class 1 in two images, 2 in one, an image without any class."""


def data(shown: np.ndarray, classes: tuple[str, ...]) -> Dataset:
    images = np.zeros((*shown.shape, 1), np.uint8)
    return Dataset(train=ImageSet(images=images, labels=shown), classes=classes)


def test_pixels_are_counted_without_those_ignored() -> None:
    assert masks.pixel_counts(SHOWN, 4).tolist() == [6, 4, 1, 0]
    assert targets.count(SHOWN, 4).tolist() == [6, 4, 1, 0]
    assert masks.image_counts(SHOWN, 4).tolist() == [3, 2, 1, 0]


def test_counting_in_blocks_is_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_BLOCK", 5)
    assert masks.pixel_counts(SHOWN, 4).tolist() == [6, 4, 1, 0]


def test_an_image_is_spread_by_its_rarest_class() -> None:
    assert masks.mask_strata(SHOWN).tolist() == [1, 2, 1, 3]
    assert targets.strata(SHOWN[:3]).tolist() == [1, 2, 1]
    # Of equals the lowest number; without any class all are alike.
    assert masks.mask_strata(np.array([[[0, 1]], [[1, 0]]], np.uint8)).tolist() == [0, 0]
    assert masks.mask_strata(SHOWN[3:]).tolist() == [0]


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_an_image_has_the_class_by_which_it_is_spread(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shown = rng.choice([0, 1, 2, 7, 255], (6, 2, 2)).astype(np.uint8)
    for mask, stratum in zip(shown, masks.mask_strata(shown), strict=True):
        present = set(mask.ravel().tolist()) - {255}
        assert stratum in present if present else stratum > shown[shown != 255].max(initial=0)


def test_classes_are_found_by_name_and_left_out_ones_ignored() -> None:
    own = data(SHOWN, ("ground", "tree", "car"))
    found = relabel(own, {"tree": "plant", "car": ""}, ("plant", "ground"))
    assert found.train.labels[2].tolist() == [[1, 0], [0, 0]]
    assert found.train.labels[1].tolist() == [[1, 255], [255, 1]]
    labels, missing = by_name(own.train, own.classes, ("car", "ground", "tree"))
    assert labels[1].tolist() == [[1, 255], [0, 1]]
    assert missing == ()
    with pytest.raises(DataError, match="the data has images of 'car', which the model does not know"):
        by_name(own.train, own.classes, ("ground", "tree"))


def test_a_class_that_nobody_looked_for_is_refused() -> None:
    """Its pixels would count as ground."""
    own = data(SHOWN[:1], ("ground", "tree"))
    with pytest.raises(DataError, match="does not say which images have 'car'"):
        relabel(own, {}, ("ground", "tree", "car"))


def test_a_value_that_is_no_class_is_refused_with_its_image() -> None:
    masks.check_masks(SHOWN, 3, "here")
    with pytest.raises(
        DataError, match=r"here: the mask of b\.png holds 2, and 2 classes have the values 0 to 1"
    ):
        masks.check_masks(SHOWN, 2, "here", ["a.png", "b.png", "c.png", "d.png"])
    with pytest.raises(DataError, match="there are 256 classes"):
        masks.check_masks(SHOWN, 256, "here")


def test_colours_are_black_for_the_first_class_white_for_none_and_different() -> None:
    colours = masks.palette(20)
    assert colours[0].tolist() == [0, 0, 0]
    assert colours[255].tolist() == [255, 255, 255]
    assert colours[1].tolist() == [128, 0, 0]
    assert len({tuple(one) for one in colours[:20].tolist()}) == 20
