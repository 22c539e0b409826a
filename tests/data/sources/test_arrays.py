"""scikit-learn's digits, and .npz files in MedMNIST's layout with every mistake people make in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedvision import registry
from fedvision.data.dataset import Dataset
from fedvision.data.sources import arrays
from fedvision.data.sources.arrays import digits, npz
from fedvision.errors import DataError
from fedvision.types import PluginSpec


def test_digits_are_scikit_learns_split_by_class() -> None:
    dataset = digits()
    assert dataset.test
    assert dataset.train.images.shape == (1442, 8, 8, 1)
    assert dataset.test.images.shape == (355, 8, 8, 1)
    assert dataset.classes == tuple("0123456789")
    counts = np.bincount(load_digits().target)
    assert np.bincount(dataset.test.labels).tolist() == (counts // 5).tolist()
    # Together they are the whole set, scaled from 0..16 to 0..255.
    both = np.concatenate([dataset.train.images, dataset.test.images])
    assert (both.min(), both.max()) == (0, 255)
    back = np.sort(np.round(both[..., 0] * (16 / 255)).reshape(len(both), -1).sum(1))
    np.testing.assert_array_equal(back, np.sort(load_digits().data.sum(1)))


def test_the_fifth_zero_is_the_first_in_the_test() -> None:
    dataset, whole = digits(), load_digits()
    assert dataset.test
    fifth = whole.images[np.flatnonzero(whole.target == 0)[4]]
    first = dataset.test.images[np.flatnonzero(dataset.test.labels == 0)[0], ..., 0]
    np.testing.assert_array_equal(first, np.round(fifth * 255 / 16))


def test_digits_without_the_file_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = digits()
    monkeypatch.setattr(arrays, "_DIGITS", "moved.csv.gz")
    other = digits()
    np.testing.assert_array_equal(other.train.images, found.train.images)
    np.testing.assert_array_equal(other.test.labels, found.test.labels)


def test_digits_are_the_same_twice() -> None:
    np.testing.assert_array_equal(digits().train.images, digits().train.images)


def part(name: str, labels: list[int], shape: tuple[int, ...] = (4, 4), first: int = 0) -> dict[str, Any]:
    """Return one part whose images have shades that count from ``first``."""
    shades = np.arange(first, first + len(labels), dtype=np.uint8).reshape(-1, *[1] * len(shape))
    return {
        f"{name}_images": np.broadcast_to(shades, (len(labels), *shape)).copy(),
        f"{name}_labels": np.array(labels, np.uint8)[:, None],
    }


def read(folder: Path, arrays: dict[str, Any], **keys: Any) -> Dataset:
    np.savez(folder / "a.npz", **arrays)
    return npz(path=str(folder / "a.npz"), **keys)


MEDICAL = part("train", [0, 1, 2]) | part("val", [0, 1], first=10) | part("test", [2], first=20)


def shades(dataset: Dataset) -> tuple[list[int], list[int]]:
    test = [] if dataset.test is None else dataset.test.images[:, 0, 0, 0].tolist()
    return dataset.train.images[:, 0, 0, 0].tolist(), test


def test_medmnists_layout(tmp_path: Path) -> None:
    dataset = read(tmp_path, MEDICAL)
    assert dataset.train.images.shape == (3, 4, 4, 1)
    assert dataset.train.labels.tolist() == [0, 1, 2]
    assert dataset.classes == ("0", "1", "2")
    assert isinstance(dataset.train.images, np.memmap)


@pytest.mark.parametrize(
    ("val", "train", "test", "noticed"),
    [
        ("auto", [0, 1, 2], [20], True),
        ("drop", [0, 1, 2], [20], True),
        ("train", [0, 1, 2, 10, 11], [20], False),
        ("test", [0, 1, 2], [20, 10, 11], False),
    ],
)
def test_validation_images(
    tmp_path: Path, val: str, train: list[int], test: list[int], noticed: bool
) -> None:
    dataset = read(tmp_path, MEDICAL, val=val)
    assert shades(dataset) == (train, test)
    left = '2 validation images are left out; val = "train" or "test" uses them'
    assert dataset.notices == ((left,) if noticed else ())


def test_validation_takes_the_place_of_test_images(tmp_path: Path) -> None:
    """A quarter of each class, whatever else is in the file, so that no test image is looked at."""
    labels = [0] * 8 + [1] * 4 + [2] * 4
    whole = part("train", labels) | part("test", [2], first=20)
    dataset = read(tmp_path, whole, validation=0.25)
    train, measured = shades(dataset)
    assert dataset.test
    assert np.bincount(dataset.test.labels).tolist() == [2, 1, 1]
    assert sorted([*train, *measured]) == list(range(16))
    assert (train, measured) == (sorted(train), sorted(measured))
    assert dataset.test.labels.tolist() == [labels[shade] for shade in measured]
    assert dataset.train.labels.tolist() == [labels[shade] for shade in train]
    assert dataset.notices == (
        "1 test image left out: data.validation measures on 4 training images instead",
    )
    # Other images of one class change nothing for those of another.
    fewer = read(tmp_path, part("train", labels[:12]), validation=0.25)
    assert shades(fewer)[1] == measured[:3]
    assert fewer.notices == ()


def test_a_share_of_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"validation = 0\.01 is less than one image of any class; raise it"):
        read(tmp_path, MEDICAL, validation=0.01)
    with pytest.raises(ValueError, match=r"validation must be >= 0 and < 1, not 1"):
        read(tmp_path, MEDICAL, validation=1)


def test_digits_measured_on_training_images() -> None:
    dataset, whole = digits(validation=0.1), digits()
    assert dataset.test
    assert len(dataset.train) + len(dataset.test) == len(whole.train)
    counts = np.bincount(whole.train.labels)
    np.testing.assert_allclose(np.bincount(dataset.test.labels), counts * 0.1, atol=0.5)


def test_missing_parts(tmp_path: Path) -> None:
    train, val = part("train", [0, 1]), part("val", [1], first=10)
    assert shades(read(tmp_path, train)) == ([0, 1], [])
    assert shades(read(tmp_path, train | val)) == ([0, 1], [10])
    assert read(tmp_path, train | val, val="drop").test is None


def test_colour_and_labels_in_one_row(tmp_path: Path) -> None:
    arrays = part("train", [1, 0], shape=(4, 4, 3))
    arrays["train_labels"] = arrays["train_labels"][:, 0].astype(np.int32)
    dataset = read(tmp_path, arrays)
    assert dataset.train.images.shape == (2, 4, 4, 3)
    assert dataset.train.labels.tolist() == [1, 0]


def test_named_classes_may_lack_images(tmp_path: Path) -> None:
    arrays = part("train", [0, 2])
    with pytest.raises(DataError, match=r"labels go up to 2, but no image has 1; count .* data\.classes"):
        read(tmp_path, arrays)
    assert read(tmp_path, arrays, classes=["a", "b", "c", "d"]).classes == ("a", "b", "c", "d")
    with pytest.raises(DataError, match=r"label 2 has no name; data\.classes names 2 classes, from 0"):
        read(tmp_path, arrays, classes=["a", "b"])
    with pytest.raises(ValueError, match="classes must be different names"):
        read(tmp_path, arrays, classes=["a", "a", "b"])


def test_a_class_of_the_test_set_alone_closes_the_gap(tmp_path: Path) -> None:
    assert len(read(tmp_path, part("train", [0, 2]) | part("test", [1])).classes) == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(1)}, r"there is no array 'train_images'; it holds x"),
        (
            {"train_images": MEDICAL["train_images"]},
            r"there is no array 'train_labels'; it holds train_images",
        ),
        (
            part("train", [0]) | {"test_images": MEDICAL["test_images"]},
            r"there is no array 'test_labels'",
        ),
        (part("train", []), r"train_images is empty; there must be training images"),
        (
            {"train_images": np.zeros((1, 4, 4)), "train_labels": [0]},
            r"train_images must be uint8 .* pixels 0\.\.255, not float64 \[1, 4, 4\]",
        ),
        (
            {"train_images": np.zeros((1, 16), np.uint8), "train_labels": [0]},
            r"train_images must be uint8 \[N, H, W\] .*, not uint8 \[1, 16\]",
        ),
        (
            {"train_images": np.zeros((1, 3, 32, 32), np.uint8), "train_labels": [0]},
            r"train_images is \[1, 3, 32, 32\], channels first; store it as \[N, H, W, channels\]",
        ),
        (
            part("train", [0]) | {"train_labels": [0.5]},
            r"train_labels must be whole numbers .* not float64 \[1\]",
        ),
        (
            part("train", [0]) | {"train_labels": [[[0, 1, 1]]]},
            r"train_labels must be .* one class an image, or .* not int64 \[1, 1, 3\]",
        ),
        (
            part("train", [0, 1]) | {"train_labels": [0]},
            r"train_images has 2 images, but .*train_labels 1 labels",
        ),
        (part("train", [0]) | {"train_labels": [-1]}, r"train_labels holds -1; labels count from 0"),
    ],
)
def test_wrong_files(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, arrays)
    assert "a.npz" in str(caught.value)


def test_validation_images_of_another_size_cannot_be_joined(tmp_path: Path) -> None:
    arrays = part("train", [0]) | part("val", [0], shape=(5, 5))
    with pytest.raises(DataError, match=r'val_images differ in size from train_images; data\.val = "drop"'):
        read(tmp_path, arrays, val="train")
    with pytest.raises(ValueError, match="val must be one of auto, train, test, drop, not 'merge'"):
        read(tmp_path, arrays, val="merge")


def test_by_name_and_a_source_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path, MEDICAL)
    found = registry.build("data", PluginSpec(use="npz", args={"path": str(tmp_path / "a.npz")}))
    assert len(found.train) == 3
    (tmp_path / "my_images.py").write_text(
        "from fedvision.data.sources.arrays import npz\n"
        "def load(*, folder: str):\n"
        "    return npz(path=folder + '/a.npz', val='train')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = registry.build("data", PluginSpec(use="my_images:load", args={"folder": str(tmp_path)}))
    assert len(own.train) == 5


def test_volumes_are_no_images_of_many_channels(tmp_path: Path) -> None:
    """3-D MedMNIST is [N, 28, 28, 28]; it trained as 28 channels without a word."""
    volumes = part("train", [0, 1], shape=(8, 8, 8))
    with pytest.raises(
        DataError, match=r"train_images is \[2, 8, 8, 8\]: volumes, or images of 8 channels; save"
    ):
        read(tmp_path, volumes)
    assert read(tmp_path, volumes, channels=8).train.images.shape == (2, 8, 8, 8)
    with pytest.raises(DataError, match=r"8 channels, but data\.channels = 3"):
        read(tmp_path, volumes, channels=3)
    with pytest.raises(DataError, match="of volumes, save slices as images"):
        read(tmp_path, part("train", [0, 1], shape=(8, 8, 8, 1)))
    assert read(tmp_path, part("train", [0, 1], shape=(8, 8, 4))).train.images.shape == (2, 8, 8, 4)
