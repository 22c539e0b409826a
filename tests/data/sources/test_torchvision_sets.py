"""torchvision's own classes read tiny copies of their sets, and what comes out is what lay in the files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision

from fedvision import registry
from fedvision.data.dataset import Dataset
from fedvision.data.sources.torchvision_sets import torchvision_dataset
from fedvision.errors import DataError, PluginError
from fedvision.types import PluginSpec
from tests.data import layouts
from tests.data.layouts import LABELS, Layout, noise
from tests.work import lines_of


def build(use: str, **args: Any) -> Dataset:
    dataset = registry.build("data", PluginSpec(use=use, args=args))
    assert isinstance(dataset, Dataset)
    return dataset


@pytest.mark.parametrize(
    ("use", "name"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_the_mnist_family(tmp_path: Path, use: str, name: str) -> None:
    layouts.mnist(tmp_path, name)
    dataset = build(use, root=str(tmp_path))
    assert dataset.test
    np.testing.assert_array_equal(dataset.train.images, noise(4, 28, 28)[..., None])
    np.testing.assert_array_equal(dataset.test.images, noise(2, 28, 28)[..., None])
    assert dataset.train.labels.tolist() == LABELS.tolist()
    assert dataset.classes == tuple(getattr(torchvision.datasets, name).classes)


@pytest.mark.parametrize(("split", "classes"), [("balanced", 47), ("letters", 26), ("byclass", 62)])
def test_emnist_stands_upright_and_has_no_empty_class(tmp_path: Path, split: str, classes: int) -> None:
    layouts.emnist(tmp_path, split)
    dataset = build("emnist", root=str(tmp_path), **({} if split == "balanced" else {"split": split}))
    np.testing.assert_array_equal(dataset.train.images[..., 0], noise(4, 28, 28).swapaxes(1, 2))
    assert dataset.train.labels.tolist() == LABELS.tolist()
    assert len(dataset.classes) == classes
    assert dataset.classes[0] == ("a" if split == "letters" else "0")


CIFAR10 = functools.partial(layouts.cifar, fine=False)
CIFAR100 = functools.partial(layouts.cifar, fine=True)
# CIFAR's files hold channel after channel.
PLANES = noise(4, 3072).reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
ANIMALS = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize(
    ("use", "layout", "images", "classes"),
    [
        ("qmnist", layouts.qmnist, noise(4, 28, 28)[..., None], torchvision.datasets.QMNIST.classes),
        ("cifar10", CIFAR10, np.concatenate([PLANES] * 5), ANIMALS),
        ("cifar100", CIFAR100, PLANES, ANIMALS),
        ("svhn", layouts.svhn, noise(4, 32, 32, 3), "0123"),
        ("stl10", layouts.stl10, noise(4, 96, 96, 3), ANIMALS),
    ],
)
def test_sets_in_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: str,
    layout: Layout,
    images: np.ndarray[Any, Any],
    classes: Any,
) -> None:
    layout(tmp_path, monkeypatch)
    dataset = build(use, root=str(tmp_path))
    assert dataset.test
    np.testing.assert_array_equal(dataset.train.images, images)
    assert dataset.train.images.flags.c_contiguous
    assert dataset.train.labels.tolist() == LABELS.tolist() * (len(images) // 4)
    assert dataset.test.labels.tolist() == LABELS[:2].tolist()
    assert dataset.test.images.shape == (2, *images.shape[1:])
    assert dataset.classes == tuple(classes)


def test_usps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.usps(tmp_path, monkeypatch)
    dataset = build("usps", root=str(tmp_path))
    expected = noise(256).reshape(16, 16).astype(int)
    assert np.abs(dataset.train.images[..., 0] - expected).max() <= 1
    assert dataset.train.labels.tolist() == LABELS.tolist()
    assert dataset.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("use", "layout", "train", "test", "classes"),
    [
        ("eurosat", layouts.eurosat, "0a 1b 2b 3a", "", ("Crop", "Forest")),
        ("country211", layouts.country211, "0a 1b", "3a 4b", ("AD", "ZW")),
        ("gtsrb", layouts.gtsrb, "0a 1b", "2b 3a", ("0", "1")),
        ("flowers102", layouts.flowers102, "0a 1b", "2a 3b", None),
        ("oxford-iiit-pet", layouts.pets, "0a 1b", "2b", ("Abyssinian", "Beagle")),
        ("food101", layouts.food101, "0b 1a", "2b", ("cake", "soup")),
        ("dtd", layouts.dtd, "0a 1b", "2a", ("lined", "woven")),
        ("fgvc-aircraft", layouts.aircraft, "0a 1b", "2b", ("707-320", "A 380")),
        ("stanford-cars", layouts.cars, "0b 1a", "2a 3b", ("Audi", "BMW")),
    ],
)
def test_sets_of_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: str,
    layout: Layout,
    train: str,
    test: str,
    classes: tuple[str, ...] | None,
) -> None:
    layout(tmp_path, monkeypatch)
    dataset = build(use, root=str(tmp_path), size=8)
    assert dataset.train.images.shape[1:] == (8, 8, 3)
    for half, expected in ((dataset.train, train), (dataset.test, test)):
        # A shade and its class, as the layout wrote them; JPEG may be off by one.
        found = [] if half is None else zip(half.images[:, 4, 4, 0], half.labels, strict=True)
        assert sorted(f"{shade}{'ab'[label]}" for shade, label in found) == expected.split()
    assert classes is None or dataset.classes == classes


def test_a_set_without_a_test_part_takes_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.eurosat(tmp_path, monkeypatch)
    dataset = build("eurosat", root=str(tmp_path), size=8, channels=1, validation=0.5)
    assert dataset.test
    assert sorted(dataset.test.labels.tolist()) == [0, 1]
    assert dataset.train.images.shape == (2, 8, 8, 1)


def test_a_set_of_files_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.dtd(tmp_path, monkeypatch)
    build("dtd", root=str(tmp_path), size=8)
    monkeypatch.setattr("fedvision.data.decoding.decode.decode_all", None)
    assert len(build("dtd", root=str(tmp_path), size=8).train) == 2


@pytest.mark.parametrize("name", sorted(n for n, b in registry.BUILTINS["data"].items() if b.preset))
def test_a_missing_set_names_folder_and_remedy(tmp_path: Path, name: str) -> None:
    message = (
        r"is not in .*nowhere \(.*\); set data\.download = true to fetch it, or data\.root to the folder"
    )
    with pytest.raises(DataError, match=message):
        build(name, root=str(tmp_path / "nowhere"), size=8)
    assert not (tmp_path / "nowhere").exists()


def test_a_failed_download_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(DataError, match=r"CIFAR10 could not be fetched to .*new \(no route to host\)"):
        build("cifar10", root=str(tmp_path / "new"), download=True)


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.mnist(tmp_path, "MNIST")
    monkeypatch.setenv("FEDVISION_DATA", str(tmp_path))
    assert len(build("mnist").train) == 4


def test_sets_of_arrays_are_measured_on_training_images(tmp_path: Path) -> None:
    layouts.mnist(tmp_path, "MNIST")
    layouts.idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.array([0, 0, 1, 1], np.uint8))
    dataset, whole = (build("mnist", root=str(tmp_path), validation=share) for share in (0.5, 0))
    assert dataset.test
    together = np.concatenate([dataset.train.images, dataset.test.images])
    np.testing.assert_array_equal(np.sort(together, 0), np.sort(whole.train.images, 0))
    assert "left out: data.validation measures on" in dataset.notices[0]
    assert len(dataset.train) == len(dataset.test) == 2


def test_a_share_that_takes_every_image_is_refused(tmp_path: Path) -> None:
    layouts.mnist(tmp_path, "MNIST")  # an image of each class
    with pytest.raises(PluginError, match=r"validation = 0\.5 leaves nothing to train on"):
        build("mnist", root=str(tmp_path), validation=0.5)


def test_keys_that_do_not_suit_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.mnist(tmp_path, "MNIST")
    layouts.dtd(tmp_path, monkeypatch)
    for keys, sentence in (
        ({"size": 32}, "size is for other sets; the images of MNIST are of one size"),
        ({"fit": "pad"}, "fit is for other sets"),
        ({"range": 1023.0}, "range is for other sets"),
        ({"split": "letters"}, "split = 'letters' is for emnist alone"),
    ):
        with pytest.raises(PluginError, match=sentence):
            build("mnist", root=str(tmp_path), **keys)
    with pytest.raises(PluginError, match="size is missing: the images of DTD differ in size; add size = 64"):
        build("dtd", root=str(tmp_path))
    with pytest.raises(PluginError, match="takes no key 'dataset'"):
        build("mnist", dataset="KMNIST")


def test_a_number_of_channels_that_the_set_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CIFAR10(tmp_path, monkeypatch)
    assert build("cifar10", root=str(tmp_path), channels=3).train.images.shape[3] == 3
    with pytest.raises(PluginError, match="channels = 1: the images of CIFAR10 have 3; remove it"):
        build("cifar10", root=str(tmp_path), channels=1)


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"torchvision has no such set; did you mean 'MNIST'\?"):
        torchvision_dataset(dataset="MNISTT")


@pytest.mark.real_data
def test_the_real_fashion_mnist_is_not_read_image_by_image(fashion_mnist_root: Path) -> None:
    built: list[Any] = []
    # In less than a second on one core.
    assert lines_of(lambda: built.append(build("fashion-mnist", root=str(fashion_mnist_root)))) < 1000
    (dataset,) = built
    assert dataset.test
    assert dataset.train.images.shape == (60000, 28, 28, 1)
    assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    # Mean and deviation that everyone normalises this set with.
    counts = np.bincount(dataset.train.images.ravel(), minlength=256) / dataset.train.images.size
    shades = np.arange(256) / 255
    mean = counts @ shades
    assert (round(mean, 4), round(np.sqrt(counts @ (shades - mean) ** 2), 4)) == (0.2860, 0.3530)
