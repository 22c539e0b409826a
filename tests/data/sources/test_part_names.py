"""What people call the parts of a data set, and what only looks so."""

from __future__ import annotations

import pytest

from fedvision.data.sources.part_names import are_parts, part_of


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"), ("Training", "train"), ("TRAIN", "train"), ("training_set", "train"),
        ("Test", "test"), ("Testing", "test"), ("test-set", "test"), ("test images", "test"),
        ("valid", "val"), ("Validation", "val"), ("dev", "val"), ("eval", "val"),
        ("trainer", None), ("test1", None), ("seg_train", None), ("cat", None), ("", None),
    ],
)  # fmt: skip
def test_names_of_parts(name: str, part: str | None) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train"], True),
        (["Training", "Testing"], True),
        (["train", "test", "bus"], True),
        (["train", "test1"], True),
        (["seg_train", "seg_test", "seg_pred"], False),
        (["seg_train", "seg_test"], True),
        (["train", "bus"], False),
        (["train-1", "train-2"], False),
        (["cat", "dog"], False),
        ([], False),
    ],
)
def test_folders_that_are_parts(names: list[str], expected: bool) -> None:
    assert are_parts(names) == expected
