"""What a data set is: each part has a digest that follows what a run would see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedvision.data import identity as module
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.identity import identity


def images(seed: int = 0, count: int = 12) -> ImageSet:
    rng = np.random.default_rng(seed)
    return ImageSet(
        images=rng.integers(0, 256, (count, 4, 4, 1), dtype=np.uint8),
        labels=np.arange(count, dtype=np.int64) % 3,
        columns={"site": np.array(["a", "b"] * (count // 2))},
    )


def dataset() -> Dataset:
    return Dataset(train=images(), test=images(1), classes=("ant", "bee", "cat"))


def changed(old: Dataset, new: Dataset) -> list[str]:
    before, after = identity(old), identity(new)
    return [part for part in before if after.get(part) != before[part]]


def test_equal_data_have_equal_digests() -> None:
    assert identity(dataset()) == identity(dataset())
    assert len(set(identity(dataset()))) == 7


def test_a_single_pixel_label_column_or_name_changes_its_part_alone() -> None:
    old = dataset()
    pixels = old.train.images.copy()
    pixels[11, 3, 3, 0] ^= 1
    assert changed(old, replace(old, train=replace(old.train, images=pixels))) == ["training images"]
    labels = old.train.labels.copy()
    labels[[0, 1]] = labels[[1, 0]]
    assert changed(old, replace(old, train=replace(old.train, labels=labels))) == ["training labels"]
    columns = {"site": old.train.columns["site"][::-1]}
    assert changed(old, replace(old, train=replace(old.train, columns=columns))) == ["training columns"]
    assert changed(old, replace(old, classes=("bee", "ant", "cat"))) == ["class names"]
    assert changed(old, replace(old, test=images(2))) == ["test images"]
    assert changed(old, replace(old, test=None)) == ["test images", "test labels", "test columns"]


def test_images_hashed_in_pieces_have_the_digest_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = identity(dataset())
    monkeypatch.setattr(module, "_BYTES", 33)
    assert identity(dataset()) == whole


def test_cached_images_are_known_by_their_key_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = dataset()
    found = []
    for key in ("a" * 40, "b" * 40, "a" * 40):
        (tmp_path / key).mkdir(exist_ok=True)
        np.save(tmp_path / key / "images.npy", old.train.images)
        mapped = np.load(tmp_path / key / "images.npy", mmap_mode="r")
        monkeypatch.setattr(module, "_BYTES", 0)  # what is hashed would divide by this
        found.append(identity(replace(old, train=replace(old.train, images=mapped)))["training images"])
    assert found[0] == found[2] != found[1]


def test_a_server_without_images_of_its_own_compares_names_and_test_images() -> None:
    assert list(identity(dataset(), train=False)) == [
        "class names",
        "test images",
        "test labels",
        "test columns",
    ]
