"""Names as people and programs write them: missing, numbers, equal to the eye."""

from __future__ import annotations

import unicodedata

import pytest

from fedvision.data.naming import alike, alike_notice, class_names, in_order, is_missing
from fedvision.errors import DataError


@pytest.mark.parametrize("text", ["", "  ", "nan", "NaN", "NA", "N/A", "None", "null", "<NA>", " nan "])
def test_missing_values(text: str) -> None:
    assert is_missing(text)


@pytest.mark.parametrize("text", ["none", "0", "nano", "na", "-", "Nancy"])
def test_names_that_are_names(text: str) -> None:
    assert not is_missing(text)


@pytest.mark.parametrize(
    ("names", "sorted_names"),
    [
        (["10.0", "2.0", "1.0"], ["1.0", "2.0", "10.0"]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["1e3", "20", "0.5"], ["0.5", "20", "1e3"]),
        (["10", "9", "2b"], ["10", "2b", "9"]),
        (["1_0", "9"], ["1_0", "9"]),
        (["inf", "9", "10"], ["10", "9", "inf"]),
        ([], []),
    ],
)
def test_numbers_are_sorted_by_value_and_all_else_as_text(names: list[str], sorted_names: list[str]) -> None:
    assert in_order(names) == sorted_names


def test_one_number_in_two_ways_and_a_missing_class_are_refused() -> None:
    with pytest.raises(DataError, match=r"here: classes '2' and '2\.0' are one number; write it in one way"):
        class_names(["1", "2.0", "2"], "here")
    with pytest.raises(DataError, match=r"here: class 'nan' stands for a missing value; .*data\.classes"):
        class_names(["cat", "nan"], "here")


def test_names_that_look_alike() -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    assert alike(["Cat", "cat", "dog"]) == (("Cat", "cat"),)
    assert alike(["a b", "a\u00a0b", "ab", "c"]) == (("a b", "ab"), ("a b", "a\u00a0b"))
    assert alike(["café", decomposed]) == ((decomposed, "café"),)
    assert alike(["café", "cafe"]) == ()
    sentence = "classes 'Cat' and 'cat' differ only in case or blanks; rename one where they mean the same"
    assert alike_notice("classes", ["cat", "Cat"]) == (sentence,)
    assert alike_notice("classes", ["cat", "dog"]) == ()
