"""Columns of a manifest as numbers: what a cell may be, what is absent, and what is refused."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision.config import ModelConfig
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.sources.inputs import (
    CellError,
    check_settled,
    encode_columns,
    encoded,
    settled,
    with_inputs,
)
from fedvision.data.text import bucket, encode_texts, grams_of, words_of
from fedvision.errors import ConfigError, DataError
from fedvision.inputs import GRAMS, InputConfig, for_trial, places, width
from fedvision.tables import build

AGE = InputConfig(kind="number", column="years", mean=50, deviation=10)
CELL = InputConfig(kind="category", categories=("mono", "poly"))


def images(**columns: Any) -> ImageSet:
    count = len(next(iter(columns.values())))
    return ImageSet(
        images=np.zeros((count, 2, 2, 1), np.uint8),
        labels=np.zeros(count, np.int64),
        columns={name: np.array(values) for name, values in columns.items()},
        names=[f"{number}.png" for number in range(count)],
    )


def rows(inputs: dict[str, InputConfig], **columns: Any) -> np.ndarray[Any, Any]:
    found = encoded(images(**columns), inputs).further
    assert found is not None
    return found


def test_numbers_are_standardised_and_categories_numbered_in_the_order_of_the_names() -> None:
    inputs = {"cell": CELL, "age": AGE}
    found = rows(inputs, years=["40", " 65.5 ", "", "nan"], cell=["poly", "NA", "mono", ""])
    wanted = [[-1.0, 1.0], [1.55, math.nan], [math.nan, 0.0], [math.nan, math.nan]]
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))


def test_numbers_that_are_numbers_already_are_the_same() -> None:
    as_text = rows({"age": AGE}, years=["40", "nan", "61.25"])
    np.testing.assert_array_equal(rows({"age": AGE}, years=np.array([40, np.nan, 61.25])), as_text)


def test_a_category_may_be_called_as_a_missing_value() -> None:
    one = InputConfig(kind="category", categories=("None", "some"))
    np.testing.assert_array_equal(rows({"a": one}, a=["None", "some", "nan"])[:, 0], [0, 1, np.nan])


@pytest.mark.parametrize(
    ("inputs", "columns", "problem"),
    [
        ({"age": AGE}, {"years": ["1", "old"]}, "model.inputs.age: 1.png has 'old' in column 'years'"),
        ({"age": AGE}, {"years": ["1_0"]}, "'1_0' in column 'years', which is no finite number"),
        ({"age": AGE}, {"years": ["1", "inf"]}, "1.png has 'inf'"),
        ({"age": AGE}, {"yaers": ["1"]}, "no column 'years'; did you mean 'yaers'?"),
        ({"cell": CELL}, {"cell": ["mono", "Mono"]}, "1.png has 'Mono' in column 'cell'.* did you mean"),
        (
            {"v": InputConfig(kind="vector", columns=("a", "b"))},
            {"a": ["1", "2"], "b": ["1", ""]},
            "1.png has a part of a vector: column 'b' is empty",
        ),
    ],
)
def test_other_cells_are_refused_with_input_image_and_column(
    inputs: dict[str, InputConfig], columns: dict[str, Any], problem: str
) -> None:
    with pytest.raises(CellError, match=problem):
        rows(inputs, **columns)


def test_words_are_numbered_by_their_n_grams() -> None:
    found = encode_texts(["Cat, RED cat!", "", "..."], words=2, buckets=97).reshape(3, 2, GRAMS)
    grams = ["<cat>", "<ca", "cat", "at>", "<cat", "cat>"]
    assert grams_of("cat") == grams
    wanted = [zlib.crc32(gram.encode()) % 97 for gram in grams]
    np.testing.assert_array_equal(found[0, 0, :6], wanted)
    assert np.isnan(found[0, 0, 6:]).all()
    assert found[0, 1, 0] == bucket("<red>", 97)  # the third word is not read
    assert np.isnan(found[1:]).all()
    assert words_of("Ｓtraße") == ["strasse"]  # full-width letters, and no case
    assert len(grams_of("x" * 50 + "abcdefghijklmnopqrstuvwxyz")) == GRAMS


def test_vectors_of_columns_are_in_the_order_of_their_numbers() -> None:
    given = images(e10=["10"], e9=["9"], e1=["1"], other=["7"])
    found = settled({"v": InputConfig(kind="vector", columns=("e*",))}, Dataset(train=given, classes=("a",)))
    assert found["v"].columns == ("e1", "e9", "e10")
    np.testing.assert_array_equal(encoded(given, found).further, [[1, 9, 10]])
    with pytest.raises(DataError, match=r"columns = \['z\*'\] must match columns"):
        settled({"v": InputConfig(kind="vector", columns=("z*",))}, Dataset(train=given, classes=("a",)))


def test_vectors_of_a_file_are_found_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    np.savez(path, keys=np.array(["x", "y"]), vectors=np.array([[1, 2], [3, 4]], np.float32))
    given = images(id=["y", "z", "x"])
    inputs = {"v": InputConfig(kind="vector", column="id", file=str(path))}
    found = settled(inputs, Dataset(train=given, classes=("a",)))
    assert width(found) == 2
    np.testing.assert_array_equal(encoded(given, found).further, [[3, 4], [np.nan, np.nan], [1, 2]])
    np.savez(path, keys=np.array(["x", "x"]), vectors=np.ones((2, 2), np.float32))
    with pytest.raises(DataError, match="has a key twice"):
        encoded(given, found)
    np.savez(path, keys=np.array(["x"]), vectors=np.ones((1, 3), np.float32))
    with pytest.raises(DataError, match="vectors of 3 numbers, not of 2"):
        encoded(given, found)


def test_categories_come_from_training_and_test_images_and_settling_twice_changes_nothing() -> None:
    data = Dataset(train=images(cell=["b", "", "a"]), test=images(cell=["c", "nan"]), classes=("x",))
    found = settled({"cell": InputConfig(kind="category")}, data)
    assert found["cell"].categories == ("a", "b", "c")
    assert settled(found, data) == found
    both = with_inputs(data, found)
    np.testing.assert_array_equal(both.train.further, [[1], [np.nan], [0]])
    assert both.test is not None
    np.testing.assert_array_equal(both.test.further, [[2], [np.nan]])


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (InputConfig(kind="category"), "categories is missing"),
        (InputConfig(kind="vector", columns=("e*",)), "write out the columns"),
        (InputConfig(kind="vector", file="v.npz"), "no file in common"),
    ],
)
def test_across_machines_no_data_settles_an_input(one: InputConfig, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_settled({"a": one})
    check_settled({"a": CELL, "b": AGE, "c": InputConfig(kind="text")})


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"kind": "number", "categories": ["a"]}, "model.inputs.x.categories is for kind 'category'"),
        ({"kind": "text", "mean": 1.0}, "model.inputs.x.mean is for kind 'number', not 'text'"),
        ({"kind": "number", "deviation": 0.0}, "model.inputs.x.deviation must be > 0"),
        ({"kind": "vector"}, "needs either columns or a file"),
        ({"kind": "vector", "columns": ["a"], "file": "b"}, "needs either columns or a file"),
        ({"kind": "category", "categories": ["a", "a"]}, "must be different"),
        ({"kind": "text", "words": 0}, "model.inputs.x.words must be >= 1"),
        ({"kind": "text", "buckets": 1 << 25}, "model.inputs.x.buckets must be from 2 to 16,777,216"),
        ({"kind": "colour"}, "model.inputs.x.kind must be one of"),
        ({"column": "a"}, "model.inputs.x.kind is missing"),
    ],
)
def test_a_wrong_key_is_named(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(ModelConfig, {"use": "fusion", "inputs": {"x": table}}, "model")


def test_a_name_that_no_tensor_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.inputs\.a\.b must have a name of letters"):
        ModelConfig(use="fusion", inputs={"a.b": AGE})


def test_images_without_columns_have_nothing_but_their_pixels() -> None:
    inputs = {"age": AGE, "cell": CELL, "note": InputConfig(kind="text", words=1)}
    alone = encode_columns({}, ["a.png", "b.png"], inputs)
    assert alone.shape == (2, width(inputs))
    assert np.isnan(alone).all()
    some = encode_columns({"cell": ["poly", ""]}, ["a.png", "b.png"], inputs)
    place = next(place for name, _, place in places(inputs) if name == "cell")
    np.testing.assert_array_equal(some[:, place], [[1], [np.nan]])
    assert np.isnan(np.delete(some, place.start, axis=1)).all()
    with pytest.raises(CellError, match=r"b\.png has 'wood'"):
        encode_columns({"cell": ["poly", "wood"]}, ["a.png", "b.png"], inputs)


def test_no_images_have_rows_all_the_same() -> None:
    none = replace(
        images(cell=["mono"]), images=np.zeros((0, 2, 2, 1), np.uint8), labels=np.zeros(0, np.int64)
    )
    assert encoded(replace(none, columns={}, names=()), {"cell": CELL}).further.shape == (0, 1)  # type: ignore[union-attr]


def test_rows_of_another_number_than_the_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"float32 \[N, W\]"):
        replace(images(cell=["mono"]), further=np.zeros((2, 1), np.float32))


def test_a_trial_has_an_image_with_all_and_one_with_none() -> None:
    import torch

    inputs = {"age": AGE, "note": InputConfig(kind="text", words=2)}
    batch = for_trial(torch.zeros(3, 1, 4, 4), inputs)
    assert not isinstance(batch, torch.Tensor)
    there = ~batch.further.isnan()
    assert there[0].nonzero().flatten().tolist() == [0, 1]  # the number, and one n-gram of the first word
    assert not there[1].any()
    assert torch.equal(there[0], there[2])
