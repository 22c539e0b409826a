"""Tiny copies of torchvision's sets: the layout of their files with a handful of images in it."""

from __future__ import annotations

import bz2
import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat


def noise(*shape: int) -> NDArray[np.uint8]:
    """Return the same random pixels for the same shape."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def picture(path: Path, shade: int) -> None:
    """Write a picture of one shade; its size depends on the shade, as sizes differ in real sets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12 + shade, 16), (shade, shade, shade)).save(path, quality=100)


def idx(path: Path, array: NDArray[np.generic]) -> None:
    """Write the MNIST family's format: two zeros, type, rank, the shape and the values, big-endian."""
    kinds = {"uint8": 8, "int32": 12}
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, kinds[array.dtype.name], array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(head + array.astype(array.dtype.newbyteorder(">")).tobytes())


LABELS = np.array([3, 1, 0, 2], np.uint8)


def mnist(root: Path, name: str) -> None:
    for part, count in (("train", 4), ("t10k", 2)):
        idx(root / name / "raw" / f"{part}-images-idx3-ubyte", noise(count, 28, 28))
        idx(root / name / "raw" / f"{part}-labels-idx1-ubyte", LABELS[:count])


def emnist(root: Path, split: str) -> None:
    for part, count in (("train", 4), ("test", 2)):
        stem = f"emnist-{split}-{part}"
        idx(root / "EMNIST/raw" / f"{stem}-images-idx3-ubyte", noise(count, 28, 28))
        idx(root / "EMNIST/raw" / f"{stem}-labels-idx1-ubyte", LABELS[:count] + (split == "letters"))


def qmnist(root: Path, _: pytest.MonkeyPatch) -> None:
    for part, count in (("train", 4), ("test", 2)):
        facts = np.stack([LABELS[:count], *[np.full(count, 9)] * 7], axis=1).astype(np.int32)
        idx(root / "QMNIST/raw" / f"qmnist-{part}-images-idx3-ubyte", noise(count, 28, 28))
        idx(root / "QMNIST/raw" / f"qmnist-{part}-labels-idx2-int", facts)


def usps(root: Path, _: pytest.MonkeyPatch) -> None:
    for name, count in (("usps.bz2", 4), ("usps.t.bz2", 2)):
        lines = [
            f"{label + 1} " + " ".join(f"{i + 1}:{v / 127.5 - 1}" for i, v in enumerate(noise(256)))
            for label in LABELS[:count]
        ]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def cifar(root: Path, patch: pytest.MonkeyPatch, *, fine: bool) -> None:
    patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir()
    parts = ["train", "test"] if fine else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for part in parts:
        count = 2 if part.startswith("test") else 4
        labels = [int(label) for label in LABELS[:count]]
        entry = {"data": noise(count, 3072), "fine_labels" if fine else "labels": labels}
        (folder / part).write_bytes(pickle.dumps(entry))
    names = {"fine_label_names" if fine else "label_names": ["ant", "bee", "cat", "dog"]}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(names))


def svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    for part, count in (("train", 4), ("test", 2)):
        # The files call the digit 0 "10" and put the images' number last.
        labels = np.where(LABELS[:count] == 0, 10, LABELS[:count])[:, None]
        images = noise(count, 32, 32, 3).transpose(1, 2, 3, 0)
        savemat(root / f"{part}_32x32.mat", {"X": images, "y": labels})


def stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("torchvision.datasets.stl10.check_integrity", lambda *_: True)
    folder = root / "stl10_binary"
    folder.mkdir()
    for part, count in (("train", 4), ("test", 2)):
        # Column by column, channel by channel, labels from 1.
        noise(count, 96, 96, 3).transpose(0, 3, 2, 1).tofile(folder / f"{part}_X.bin")
        (LABELS[:count] + 1).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("ant\nbee\ncat\ndog\n")


def eurosat(root: Path, _: pytest.MonkeyPatch) -> None:
    for shade, name in enumerate(("Crop", "Forest", "Forest", "Crop")):
        picture(root / "eurosat/2750" / name / f"{shade}.jpg", shade)


def country211(root: Path, _: pytest.MonkeyPatch) -> None:
    for shade, name in enumerate(("train/AD", "train/ZW", "valid/AD", "test/AD", "test/ZW")):
        picture(root / "country211" / name / f"{shade}.jpg", shade)


def gtsrb(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "gtsrb"
    for shade, name in enumerate(("00000", "00001")):
        picture(folder / "GTSRB/Training" / name / f"{shade}.ppm", shade)
    rows = []
    for shade, label in ((2, 1), (3, 0)):
        picture(folder / "GTSRB/Final_Test/Images" / f"{shade}.ppm", shade)
        rows.append((f"{shade}.ppm", label))
    with open(folder / "GT-final_test.csv", "w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("Filename", "ClassId"), *rows])


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    folder = root / "flowers-102"
    for number in range(1, 5):
        picture(folder / "jpg" / f"image_{number:05}.jpg", number - 1)
    savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 3]], "tstid": [[4, 3]]})
    savemat(folder / "imagelabels.mat", {"labels": [[1, 2, 1, 2]]})


def pets(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for part, rows in (("trainval", "Abyssinian_1 1 1 1\nbeagle_1 2 2 1\n"), ("test", "beagle_2 2 2 1\n")):
        (folder / "annotations" / f"{part}.txt").write_text(rows)
    for shade, name in enumerate(("Abyssinian_1", "beagle_1", "beagle_2")):
        picture(folder / "images" / f"{name}.jpg", shade)


def food101(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    parts = {"train": {"soup": ["soup/1"], "cake": ["cake/1"]}, "test": {"soup": ["soup/2"], "cake": []}}
    for part, files in parts.items():
        (folder / "meta" / f"{part}.json").write_text(json.dumps(files))
    for shade, name in enumerate(("soup/1", "cake/1", "soup/2")):
        picture(folder / "images" / f"{name}.jpg", shade)


def dtd(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "dtd/dtd"
    (folder / "labels").mkdir(parents=True)
    for part, rows in (("train", "lined/1.jpg\nwoven/1.jpg\n"), ("test", "lined/2.jpg\n")):
        (folder / "labels" / f"{part}1.txt").write_text(rows)
    for shade, name in enumerate(("lined/1", "woven/1", "lined/2")):
        picture(folder / "images" / f"{name}.jpg", shade)


def aircraft(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "fgvc-aircraft-2013b/data"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nA 380\n")
    for part, rows in (("trainval", "0001 707-320\n0002 A 380\n"), ("test", "0003 A 380\n")):
        (folder / f"images_variant_{part}.txt").write_text(rows)
    for shade in range(3):
        picture(folder / "images" / f"000{shade + 1}.jpg", shade)


def cars(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    kind = [("fname", object), ("class", object)]
    for file, rows, place in (
        ("devkit/cars_train_annos.mat", [("1.jpg", 2), ("2.jpg", 1)], "cars_train"),
        ("cars_test_annos_withlabels.mat", [("3.jpg", 1), ("4.jpg", 2)], "cars_test"),
    ):
        savemat(folder / file, {"annotations": np.array(rows, dtype=kind)})
        for name, _ in rows:
            picture(folder / place / name, int(name[0]) - 1)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["Audi", "BMW"], dtype=object)})


Layout = Callable[[Path, pytest.MonkeyPatch], None]
