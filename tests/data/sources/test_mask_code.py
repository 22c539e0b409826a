"""Values and colours of masks become classes as a dictionary says, whatever their type and size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.data.masks import IGNORED
from fedvision.data.sources.mask_code import mask_code, with_classes
from fedvision.errors import DataError

_VALUES = st.lists(st.integers(0, 1 << 20), min_size=1, max_size=6, unique=True)
_TYPES = (np.uint8, np.uint16, np.int32, np.int64)


@given(values=_VALUES, ignored=st.integers(0, 300), kind=st.sampled_from(_TYPES), data=st.data())
def test_values_become_the_classes_of_a_dictionary(
    values: list[int], ignored: int, kind: Any, data: st.DataObject
) -> None:
    code = mask_code(None, values, ignore=ignored)
    meant = {ignored: IGNORED} | {value: number for number, value in enumerate(values)}
    held = [value for value in meant if value <= np.iinfo(kind).max] or [ignored % 256]
    mask = np.array(data.draw(st.lists(st.sampled_from(held), min_size=6, max_size=6)), kind).reshape(2, 3)
    if all(int(value) in meant for value in mask.flat):
        expected = [[meant[int(value)] for value in row] for row in mask]
        found = code.decode(mask)
        assert (found.dtype, found.tolist()) == (np.uint8, expected)
    else:
        with pytest.raises(ValueError, match=f"the value {mask.min()} is none of"):
            code.decode(mask)


@pytest.mark.parametrize("kind", _TYPES)
def test_of_wrong_values_the_lowest_is_named(kind: Any) -> None:
    code = mask_code(["a", "b"])
    with pytest.raises(ValueError, match="the value 2 is no class: 2 are named, so 0 to 1"):
        code.decode(np.array([[0, 9, 2], [1, 255, 7]], kind))


@pytest.mark.parametrize("value", [-1, 1 << 16, 1 << 31, 1 << 40])
def test_values_beyond_a_table_are_no_class(value: int) -> None:
    """A table that is asked for -1 gives its last row."""
    code = mask_code(["a", "b"])
    with pytest.raises(ValueError, match=f"the value {value} is no class"):
        code.decode(np.array([[0, value]], np.int64))


def test_values_in_no_region_are_background_whatever_they_are() -> None:
    code = mask_code(None, regions={"organ": [1, 70_000], "tumour": [2]}, ignore=9)
    values = np.array([[0, 1, 2, 9], [70_000, 65_535, 65_536, 3]])
    assert code.decode(values).tolist() == [[0, 1, 2, 255], [1, 0, 0, 0]]
    assert code.decode(values[:1].astype(np.uint8)).tolist() == [[0, 1, 2, 255]]


@given(colours=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=5, unique=True))
def test_colours_become_their_places_in_the_list(colours: list[tuple[int, int, int]]) -> None:
    code = mask_code(None, colours=colours)
    picture = np.array([colours, colours[::-1]], np.uint8)
    count = len(colours)
    assert code.decode(picture).tolist() == [[*range(count)], [*range(count)][::-1]]
    red, green, blue = colours[0]
    if (other := (red, green, (blue + 1) % 256)) not in colours:
        picture[1, 0] = other
        with pytest.raises(ValueError, match=rf"the colour \[{red}, {green}, {other[2]}\] is none of"):
            code.decode(picture)


def test_classes_without_names_reach_to_the_highest_in_any_mask() -> None:
    masks = np.array([[[0, 255]], [[3, 0]], [[1, 255]]], np.uint8)
    assert with_classes(mask_code(None), masks, "set") == ("0", "1", "2", "3")
    assert with_classes(mask_code(None, ignore=4), masks, "set") == ("0", "1", "2", "3")
    with pytest.raises(
        DataError, match=r"set: data\.ignore has 2, below .*data\.values, such as \[0, 1, 3\]"
    ):
        with_classes(mask_code(None, ignore=[7, 2]), masks, "set")


def test_what_is_ignored_is_no_class_where_none_is_named() -> None:
    code = mask_code(None, ignore=[0, 7])
    assert code.decode(np.array([[0, 1, 7, 254]], np.uint8)).tolist() == [[IGNORED, 1, IGNORED, 254]]
    with pytest.raises(ValueError, match=r"the value 255 is no class, which are 0 to 254 \(ignored: 0, 7\)"):
        code.decode(np.array([[255]], np.uint8))


def test_a_named_class_is_not_ignored_without_a_word() -> None:
    with pytest.raises(ValueError, match="ignore has 1, which is the number of class 'car'; list the value"):
        mask_code(["road", "car"], ignore=1)
    code = mask_code(["road", "car"], ignore=2)
    assert code.decode(np.array([[0, 1, 2]], np.uint8)).tolist() == [[0, 1, IGNORED]]
    listed = mask_code(["road", "car"], [5, 1], ignore=[1, 0])
    assert listed.decode(np.array([[5, 1, 0]], np.uint8)).tolist() == [[0, 1, IGNORED]], "values has it"


def test_colours_cannot_be_ignored() -> None:
    with pytest.raises(ValueError, match="ignore lists values, and masks with colours have none"):
        mask_code(None, colours=[[0, 0, 0], [1, 2, 3]], ignore=0)
