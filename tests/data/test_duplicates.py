"""Equal pictures are found by their pixels, in the right set and under the right labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.duplicates import find_duplicates, twin_notices

Pictures = list[tuple[int, int]]


def images(pictures: Pictures) -> ImageSet:
    """Return one-pixel images from (pixel, label)."""
    table = np.array(pictures, np.int64).reshape(-1, 2)
    return ImageSet(images=table[:, 0].astype(np.uint8)[:, None, None, None], labels=table[:, 1])


def dataset(train: Pictures, test: Pictures) -> Dataset:
    return Dataset(train=images(train), test=images(test) if test else None, classes=("a", "b"))


def test_each_pair_names_the_image_and_the_first_like_it() -> None:
    found = find_duplicates(dataset([(1, 0), (2, 0), (1, 0), (2, 1), (1, 1)], [(3, 0), (2, 0)]))
    assert found.repeated == ((2, 0),)
    assert found.contradicting == ((3, 1), (4, 0))
    assert found.leaked == ((1, 1),)


PICTURES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=12)


@given(PICTURES, PICTURES)
def test_it_agrees_with_comparing_every_pair(train: Pictures, test: Pictures) -> None:
    found = find_duplicates(dataset(train, test))
    pixels = [pixel for pixel, _ in train]
    later = {i for i, pixel in enumerate(pixels) if pixel in pixels[:i]}
    assert {i for i, _ in (*found.repeated, *found.contradicting)} == later
    assert {i for i, _ in found.leaked} == {i for i, (pixel, _) in enumerate(test) if pixel in pixels}


def test_a_set_without_a_test_set_leaks_nothing() -> None:
    assert find_duplicates(dataset([(1, 0), (2, 0)], [])) == ((), (), ())


def test_notices_of_duplicates() -> None:
    found = twin_notices(dataset([(1, 0), (1, 0), (2, 0), (2, 1), (3, 0)], [(1, 0), (3, 1), (9, 0)]))
    assert found == (
        "2 test images, 1 of them under another label, are training images too, such as image 0 = image 0: "
        "the model has seen what it is measured on; remove them from one",
        "1 training images are there under two labels, such as image 3 = image 2; keep the right one",
        "1 training images are there twice and count twice, such as image 1 = image 0",
    )
    assert twin_notices(dataset([(1, 0), (2, 0)], [(3, 0)])) == ()


def test_very_large_sets_are_not_read_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvision.data.duplicates._MOST", 1)
    (notice,) = twin_notices(dataset([(1, 0), (1, 0)], []))
    assert notice.startswith("equal images were not looked for")
