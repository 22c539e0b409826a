"""The MNIST family is mapped, equals torchvision's reading, and damaged files are named."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision

from fedvision.data.sources.idx import CLASSES, idx_array, idx_dataset
from fedvision.errors import DataError


def test_it_is_what_torchvision_reads(fashion_mnist_root: Path) -> None:
    found = idx_dataset("FashionMNIST", fashion_mnist_root)
    assert found
    assert found.test
    for train, half in ((True, found.train), (False, found.test)):
        theirs = torchvision.datasets.FashionMNIST(str(fashion_mnist_root), train=train)
        np.testing.assert_array_equal(half.images[..., 0], theirs.data.numpy())
        np.testing.assert_array_equal(half.labels, theirs.targets.numpy())


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_names_are_torchvisions(name: str) -> None:
    assert CLASSES[name] == tuple(getattr(torchvision.datasets, name).classes)


def test_images_travel_by_the_name_of_their_file(fashion_mnist_root: Path) -> None:
    found = idx_dataset("FashionMNIST", fashion_mnist_root)
    assert found
    sent = pickle.dumps(found.train)
    assert len(sent) < 60_000 * 8 + 10_000
    np.testing.assert_array_equal(pickle.loads(sent).images[-1], found.train.images[-1])


def test_a_set_that_is_not_there_is_left_to_torchvision(tmp_path: Path) -> None:
    assert idx_dataset("FashionMNIST", tmp_path) is None
    assert idx_dataset("CIFAR10", tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08\x03\0\0",
        b"\0\0\x0d\x01" + struct.pack(">i", 2) + b"12345678",
        b"\0\0\x08\x01" + struct.pack(">i", 5) + b"1234",
        b"\0\0\x08\x01" + struct.pack(">i", -1),
    ],
    ids=["empty", "half a head", "floats", "cut short", "a negative size"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "train-labels-idx1-ubyte"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: it .*; fetch it again"):
        idx_array(file)


def test_torchvision_is_not_imported_for_it(fashion_mnist_root: Path) -> None:
    code = (
        "import sys; from fedvision.data.sources.torchvision_sets import torchvision_dataset;"
        f"torchvision_dataset(dataset='FashionMNIST', root={str(fashion_mnist_root)!r});"
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
