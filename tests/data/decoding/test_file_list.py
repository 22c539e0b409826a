"""Parts, classes and stratified shares of a list of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision.data.dataset import Dataset
from fedvision.data.decoding.file_list import (
    Listing,
    Reading,
    resolve_classes,
    resolve_val,
    stratified_order,
    to_dataset,
)
from fedvision.errors import DataError
from tests.data.pictures import save, shades, spoil


def made(root: Path, parts: str, labels: str = "", **keys: Any) -> Dataset:
    """Make one image for each letter (t training, v validation, e test) whose shade is its number."""
    names = [f"{number}.png" for number in range(len(parts))]
    for number, name in enumerate(names):
        save(root / name, number)
    files = Listing(
        root=root,
        names=names,
        labels=np.array([int(label) for label in labels or "0" * len(parts)], np.int64),
        classes=("a", "b"),
        parts=np.array([{"t": "train", "v": "val", "e": "test"}[part] for part in parts]),
        columns={"number": np.arange(len(parts))},
    )
    return to_dataset(files, Reading(size=4, channels=1, workers=1, **keys))


def numbers(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Return the numbers of training and test images; pixels and columns must agree on them."""
    halves = []
    for half in (dataset.train, dataset.test):
        found = [] if half is None else shades(half.images)
        assert half is None or half.columns["number"].tolist() == found
        halves.append(sorted(found))
    return halves[0], halves[1]


@pytest.mark.parametrize(
    ("val", "train", "test", "noticed"),
    [
        ("auto", [0, 3], [2], True),
        ("drop", [0, 3], [2], True),
        ("train", [0, 1, 3], [2], False),
        ("test", [0, 3], [1, 2], False),
    ],
)
def test_validation_images_beside_a_test_set(
    tmp_path: Path, val: str, train: list[int], test: list[int], noticed: bool
) -> None:
    dataset = made(tmp_path, "tvet", "0101", val=val)
    assert numbers(dataset) == (train, test)
    left = '1 validation images are left out; val = "train" or "test" uses them'
    assert (left in dataset.notices) == noticed


def test_validation_images_are_the_test_set_where_there_is_none(tmp_path: Path) -> None:
    dataset = made(tmp_path, "tvtv", "0101")
    assert numbers(dataset) == ([0, 2], [1, 3])


def test_neither_test_images_nor_a_share_is_no_test_set(tmp_path: Path) -> None:
    dataset = made(tmp_path, "ttt", "010")
    assert dataset.test is None
    assert numbers(dataset)[0] == [0, 1, 2]


def test_a_share_is_stratified_and_the_rest_trains(tmp_path: Path) -> None:
    dataset = made(tmp_path, "t" * 30, "0" * 20 + "1" * 10, validation=0.2)
    assert dataset.test
    assert np.bincount(dataset.test.labels).tolist() == [4, 2]
    train, test = numbers(dataset)
    assert sorted(train + test) == list(range(30))


def test_another_share_finds_the_images_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "t" * 10, validation=0.2)
    monkeypatch.setattr("fedvision.data.decoding.decode.decode_all", None)
    assert len(numbers(made(tmp_path, "t" * 10, validation=0.5))[1]) == 5


def test_images_are_slices_of_one_memory_map(tmp_path: Path) -> None:
    dataset = made(tmp_path, "ttee", "0101")
    assert dataset.test
    assert isinstance(dataset.train.images, np.memmap)
    assert dataset.train.images.base is dataset.test.images.base


def test_labels_and_columns_beside_unreadable_images(tmp_path: Path) -> None:
    """Labels and columns stay with their images where some are unreadable."""
    for number in range(8):
        save(tmp_path / f"{number}.png", number)
    spoil(tmp_path / "2.png")
    spoil(tmp_path / "5.png")
    files = Listing(
        root=tmp_path,
        names=[f"{number}.png" for number in range(8)],
        labels=np.arange(8) % 2,
        classes=("even", "odd"),
        parts=np.array(["train", "test"]).repeat(4),
        columns={"number": np.arange(8)},
    )
    dataset = to_dataset(files, Reading(size=4, channels=1, workers=1, max_unreadable=0.5))
    assert numbers(dataset) == ([0, 1, 3], [4, 6, 7])
    assert dataset.train.labels.tolist() == [0, 1, 1]
    assert dataset.test
    assert dataset.test.labels.tolist() == [0, 0, 1]
    assert "2 of 8 image files cannot be read" in dataset.notices[0]


@pytest.mark.parametrize("parts", ["ee", "vv"])
def test_images_to_measure_on_alone(tmp_path: Path, parts: str) -> None:
    """A set of which nothing is for training is one to measure a model on."""
    assert numbers(made(tmp_path, parts)) == ([], [0, 1])


def test_no_training_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no training image is left; see .*data\.validation"):
        made(tmp_path, "ee", validation=0.5)
    with pytest.raises(DataError, match="no training image is left"):
        made(tmp_path, "vv", val="drop")
    with pytest.raises(DataError, match="no training image is left"):
        made(tmp_path, "tt", "00", validation=0.9)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"validation": 1.0}, "validation must be >= 0 and < 1, not 1.0"),
        ({"val": "merge"}, "val must be one of auto, train, test, drop, not 'merge'"),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"validation|val") as caught:
        made(tmp_path, "te", **keys)
    assert str(caught.value) == sentence


def test_validation_takes_the_place_of_test_images(tmp_path: Path) -> None:
    dataset = made(tmp_path, "tttteeee", "00110011", validation=0.5)
    train, measured = numbers(dataset)
    assert sorted([*train, *measured]) == [0, 1, 2, 3]
    assert [number // 2 for number in measured] == [0, 1]
    assert dataset.notices[-1] == (
        "4 test images left out: data.validation measures on 2 training images instead"
    )


def test_settled_names() -> None:
    assert resolve_val("auto", has_test=True) == "drop"
    assert resolve_val("auto", has_test=False) == "test"
    assert resolve_classes(None, ["b", "a"], "here") == ("a", "b")
    assert resolve_classes(["c", "b", "a"], ["a", "b"], "here") == ("c", "b", "a")


def test_classes_that_do_not_fit() -> None:
    with pytest.raises(
        DataError, match=r"^here: class 'cow' is not in data\.classes; did you mean 'crow'\?$"
    ):
        resolve_classes(["crow", "dog"], ["cow"], "here")
    with pytest.raises(DataError, match=r"^here: there are no classes"):
        resolve_classes(None, [], "here")
    for wrong in ("cat", [], [1, 2], 3):
        with pytest.raises(ValueError, match="classes must be a list of names such as"):
            resolve_classes(wrong, ["cat"], "here")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classes must be different names"):
        resolve_classes(["cat", "cat"], ["cat"], "here")


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=80), share=st.floats(0, 0.99))
@settings(max_examples=60)
def test_any_last_share_holds_its_part_of_each_class(labels: list[int], share: float) -> None:
    found = np.array(labels, np.int64)
    order, ranks = stratified_order(found, [f"{number}.png" for number in range(len(labels))])
    assert sorted(order.tolist()) == list(range(len(labels)))
    assert np.all(np.diff(ranks) >= 0)
    held = np.bincount(found[order[np.searchsorted(ranks, 1 - share) :]], minlength=5)
    assert np.all(np.abs(held - share * np.bincount(found, minlength=5)) <= 0.5 + 1e-9)


def test_the_order_of_a_class_does_not_depend_on_other_images() -> None:
    names = [f"{number}.png" for number in range(40)]
    labels = np.arange(40) % 2
    order, _ = stratified_order(labels, names)
    even = np.arange(0, 40, 2)
    alone, _ = stratified_order(labels[even], [names[i] for i in even])
    assert [i for i in order if i % 2 == 0] == even[alone].tolist()
    # It is shuffled: names often come in the order of time or place.
    assert order.tolist() != sorted(order.tolist(), key=lambda i: (i // 2, i % 2))


def test_an_order_is_the_same_on_every_machine() -> None:
    # SHA-256 of a..e begins ca, 3e, 2e, 18, 3f: c b a with ranks 1/6 3/6 5/6, d e with ranks 1/4 3/4.
    order, ranks = stratified_order(np.array([0, 0, 0, 1, 1]), ["a", "b", "c", "d", "e"])
    assert order.tolist() == [2, 3, 1, 4, 0]
    np.testing.assert_allclose(ranks, [1 / 6, 1 / 4, 1 / 2, 3 / 4, 5 / 6])
