"""Equal pictures are found by their pixels, in the right set and under the right labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedvision.data.images import Dataset, ImageSet
from fedvision.data.twins import twins

Pictures = list[tuple[int, int]]


def images(pictures: Pictures) -> ImageSet:
    """Return one-pixel images from (pixel, label)."""
    table = np.array(pictures, np.int64).reshape(-1, 2)
    return ImageSet(images=table[:, 0].astype(np.uint8)[:, None, None, None], labels=table[:, 1])


def dataset(train: Pictures, test: Pictures) -> Dataset:
    return Dataset(train=images(train), test=images(test) if test else None, classes=("a", "b"))


def test_each_pair_names_the_image_and_the_first_like_it() -> None:
    found = twins(dataset([(1, 0), (2, 0), (1, 0), (2, 1), (1, 1)], [(3, 0), (2, 0)]))
    assert found.repeated == ((2, 0),)
    assert found.contradicting == ((3, 1), (4, 0))
    assert found.leaked == ((1, 1),)


PICTURES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=12)


@given(PICTURES, PICTURES)
def test_it_agrees_with_comparing_every_pair(train: Pictures, test: Pictures) -> None:
    found = twins(dataset(train, test))
    pixels = [pixel for pixel, _ in train]
    later = {i for i, pixel in enumerate(pixels) if pixel in pixels[:i]}
    assert {i for i, _ in (*found.repeated, *found.contradicting)} == later
    assert {i for i, _ in found.leaked} == {i for i, (pixel, _) in enumerate(test) if pixel in pixels}


def test_a_set_without_a_test_set_leaks_nothing() -> None:
    assert twins(dataset([(1, 0), (2, 0)], [])) == ((), (), ())
