"""Several labels an image, from counts and strata to splits, digests and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvision.config import PartitionConfig
from fedvision.data import targets
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.duplicates import find_duplicates
from fedvision.data.identity import identity
from fedvision.data.partition import split
from fedvision.data.shards import Shard
from fedvision.data.sources.arrays import npz
from fedvision.errors import DataError
from tests.data.sources.test_manifest import read

HAND = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]], np.uint8)


def images(labels: np.ndarray, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    return ImageSet(images=rng.integers(0, 256, (len(labels), 4, 4, 1), np.uint8), labels=labels)


def test_counts_and_strata_by_hand() -> None:
    """Label 0 has four images, 1 two, 2 one: an image goes by its rarest label, without any by number 3."""
    assert targets.count(HAND, 3).tolist() == [4, 2, 1]
    assert targets.strata(HAND).tolist() == [2, 1, 3, 0, 1]
    lists = [np.array([0, 2]), np.array([1, 3, 4])]
    assert targets.count_each(lists, HAND, 3).tolist() == [[1, 0, 1], [3, 2, 0]]
    assert targets.equal(HAND[[1, 1]], HAND[[4, 3]]).tolist() == [True, False]


def test_classes_are_their_own_strata() -> None:
    labels = np.array([2, 0, 2])
    assert targets.strata(labels) is labels
    assert targets.count(labels, 4).tolist() == [1, 0, 2, 0]
    assert targets.count_each([np.array([0, 1]), np.array([2])], labels, 3).tolist() == [[1, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    "labels",
    [np.full((2, 3), 2, np.uint8), np.zeros((3, 3), np.uint8), np.zeros((2, 3), np.int64), np.zeros(2)],
    ids=["twos", "of other images", "int64", "float"],
)
def test_targets_of_another_form_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(DataError, match="labels"):
        ImageSet(images=np.zeros((2, 4, 4, 1), np.uint8), labels=labels)


@pytest.mark.parametrize("use", ["iid", "dirichlet", "shards"])
@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_a_split_counts_labels_and_is_complete(use: str, holdout: float) -> None:
    labels = (np.random.default_rng(1).random((200, 4)) < [0.5, 0.3, 0.1, 0.05]).astype(np.uint8)
    config = PartitionConfig(use=use, clients=4, args={"alpha": 0.5} if use == "dirichlet" else {})
    made = split.make(images(labels), config, num_classes=4, seed=2, holdout=holdout)
    own = [labels[part].sum(0).tolist() for part in made.clients]  # type: ignore[union-attr]
    assert made.counts().tolist() == own
    assert made.totals.tolist() == np.sum(own, axis=0).tolist()
    everything = np.concatenate([*made.clients, *made.held])  # type: ignore[misc]
    assert sorted(everything.tolist()) == list(range(200))


def test_a_long_tail_goes_by_the_rarest_label() -> None:
    labels = np.repeat(np.eye(3, dtype=np.uint8), 40, axis=0)
    made = split.make(images(labels), PartitionConfig(clients=2, imbalance=4), num_classes=3, seed=0)
    assert sorted(made.totals.tolist()) == [10, 20, 40]


def test_a_split_of_other_labels_is_refused() -> None:
    with pytest.raises(DataError, match=r"must be \[N, 5\], not \[5, 3\]"):
        split.make(images(HAND), PartitionConfig(clients=2), num_classes=5, seed=0)


def test_a_shard_has_rows_of_labels() -> None:
    shard = Shard.whole(images(HAND)).take(np.array([1, 2]))
    assert shard.counts(3).tolist() == [1, 1, 0]
    assert shard.batch(np.array([1, 0]))[1].tolist() == [[0, 0, 0], [1, 1, 0]]


def test_digests_differ_with_shapes_and_labels() -> None:
    def digest(labels: np.ndarray) -> str:
        return identity(Dataset(train=images(labels), classes=("a",)))["training labels"]

    other = HAND.copy()
    other[0, 0] = 0
    wide = np.zeros((5, 4), np.uint8)
    assert len({digest(HAND), digest(other), digest(wide), digest(wide[:, :2])}) == 4
    assert digest(HAND) == digest(HAND.copy())


def test_equal_pictures_with_other_labels_contradict_each_other() -> None:
    same = ImageSet(images=np.zeros((3, 4, 4, 1), np.uint8), labels=HAND[[1, 4, 0]])
    found = find_duplicates(Dataset(train=same, classes=("a", "b", "c")))
    assert (found.repeated, found.contradicting) == (((1, 0),), ((2, 0),))


def test_an_archive_may_have_several_labels_an_image(tmp_path: Path) -> None:
    arrays = {"train_images": np.zeros((5, 4, 4), np.uint8), "train_labels": HAND.astype(np.int64)}
    np.savez(tmp_path / "a.npz", **arrays)
    dataset = npz(path=str(tmp_path / "a.npz"))
    assert (dataset.classes, dataset.train.labels.dtype) == (("0", "1", "2"), np.uint8)
    assert np.array_equal(dataset.train.labels, HAND)
    with pytest.raises(DataError, match=r"there are 3 labels; data\.classes names 2"):
        npz(path=str(tmp_path / "a.npz"), classes=["a", "b"])
    np.savez(tmp_path / "a.npz", **arrays | {"train_labels": 2 * HAND})
    with pytest.raises(DataError, match="holds 2, not 0 and 1 alone"):
        npz(path=str(tmp_path / "a.npz"))


ROWS = "file,sea,sky,place\na.png,1,0,x\nb.png,1,1,y\nc.png,0,0,x\n"


def by_file(dataset: Dataset) -> dict[str, list[int]]:
    return dict(zip(dataset.train.names, dataset.train.labels.tolist(), strict=True))


def test_columns_of_zero_and_one(tmp_path: Path) -> None:
    dataset = read(tmp_path, ROWS, "abc", labels=["sea", "sky"])
    assert dataset.classes == ("sea", "sky")
    assert by_file(dataset) == {"a.png": [1, 0], "b.png": [1, 1], "c.png": [0, 0]}
    assert set(dataset.train.columns) == {"place"}


def test_a_column_that_lists_labels(tmp_path: Path) -> None:
    rows = "file,label\na.png,sea\nb.png,sky | sea\nc.png,\n"
    dataset = read(tmp_path, rows, "abc", label_separator="|")
    assert dataset.classes == ("sea", "sky")
    assert by_file(dataset) == {"a.png": [1, 0], "b.png": [1, 1], "c.png": [0, 0]}
    none = read(tmp_path, "file,label\na.png,\nb.png,\n", "ab", label_separator="|", classes=["sky", "sea"])
    assert none.train.labels.tolist() == [[0, 0], [0, 0]]
    named = read(tmp_path, rows, "abc", label_separator="|", classes=["sky", "sea", "sun"])
    assert by_file(named)["b.png"] == [1, 1, 0]


@pytest.mark.parametrize(
    ("text", "keys", "problem"),
    [
        ("file,sea\na.png,2\n", {"labels": ["sea"]}, "line 2: sea must be 0 or 1"),
        ("file,sea\na.png,1\n", {"labels": ["sea", "sky"]}, r"no column 'sky'.*data.labels names it"),
        ("file,label\na.png,x|x\n", {"label_separator": "|"}, "line 2: label is 'x|x'"),
        ("file,label\na.png,x|\n", {"label_separator": "|"}, "must be different names"),
        (
            "file,label\na.png,x\n",
            {"label_separator": "|", "classes": ["y"]},
            "class 'x' is not in data.classes",
        ),
        ("file,label\na.png,\n", {"label_separator": "|"}, "there are no classes"),
    ],
)
def test_rows_of_labels_that_are_none(
    tmp_path: Path, text: str, keys: dict[str, object], problem: str
) -> None:
    with pytest.raises(DataError, match=problem.replace("|", r"\|")):
        read(tmp_path, text, "a", **keys)


def test_labels_in_two_forms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="remove label and label_separator, or labels"):
        read(tmp_path, ROWS, "abc", labels=["sea"], label_separator="|")
