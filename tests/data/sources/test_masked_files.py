"""Masks are read once and then found in the cache, unless what they depend on has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvision.data.dataset import Dataset
from fedvision.data.sources import masked_files
from fedvision.data.sources.mask_folder import mask_folder
from fedvision.errors import DataError

MASKS = [[[0, 1], [2, 2]], [[1, 1], [0, 9]], [[9, 9], [9, 9]], [[2, 0], [0, 1]]]
"""Of 9 no class is known; the third mask has none."""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write images, 60 times their masks, and the masks, of 16 x 16 pixels."""
    monkeypatch.setenv("FEDVISION_CACHE", str(tmp_path / "cache"))
    for number, mask in enumerate(MASKS):
        write(tmp_path / "set", number, mask)
    return tmp_path / "set"


def write(root: Path, number: int, mask: Any, side: int = 16) -> None:
    values = np.array(mask, np.uint8).repeat(side // 2, 0).repeat(side // 2, 1)
    for folder, pixels in (("masks", values), ("images", 20 * values)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / folder / f"{number}.png")


def run(root: Path, **keys: Any) -> Dataset:
    table = {"path": str(root), "size": 2, "fit": "stretch", "ignore": 9, "channels": 1, "workers": 1}
    return mask_folder(**table | keys)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reading a mask fail."""

    def read(root: Path, image: str, mask: str, **_: Any) -> Any:
        raise AssertionError(f"{mask} is read")

    monkeypatch.setattr(masked_files, "_read", read)


def as_lists(found: Dataset) -> Any:
    """Return the masks in the order of the images' names."""
    return found.train.labels[np.argsort(found.train.names)].tolist()


KNOWN = [[[0, 1], [2, 2]], [[1, 1], [0, 255]], [[2, 0], [0, 1]]]


def test_a_second_start_reads_no_mask(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(root)
    poison(monkeypatch)
    second = run(root)
    assert as_lists(first) == as_lists(second) == KNOWN
    assert list(first.train.names) == list(second.train.names)
    assert first.notices == second.notices
    assert any(
        "1 images have no pixel of a class and are left out: images/2.png" in one for one in second.notices
    )


def test_a_moved_folder_is_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(root)
    root.rename(root.parent / "moved")
    poison(monkeypatch)
    assert as_lists(run(root.parent / "moved")) == KNOWN


def test_a_changed_mask_is_read_again(root: Path) -> None:
    run(root)
    write(root, 3, [[0, 0], [1, 2]])
    assert as_lists(run(root)) == [*KNOWN[:2], [[0, 0], [1, 2]]]


def test_a_changed_image_of_the_same_size_has_the_same_mask(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(root)
    Image.new("L", (16, 16), 200).save(root / "images/0.png")
    poison(monkeypatch)
    found = run(root)
    assert as_lists(found) == KNOWN
    place = list(found.train.names).index("images/0.png")
    assert found.train.images[place].ravel().tolist() == [200] * 4


def test_an_image_of_another_size_than_its_known_mask_is_refused(root: Path) -> None:
    run(root)
    Image.new("L", (20, 16)).save(root / "images/0.png")
    with pytest.raises(DataError, match=r"masks/0\.png: the mask is 16 x 16 and its image .* is 16 x 20"):
        run(root)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"values": [2, 1, 0]}, [[[2, 1], [0, 0]], [[1, 1], [2, 255]], [[0, 2], [2, 1]]]),
        ({"ignore": [9, 2]}, [[[0, 1], [255, 255]], [[1, 1], [0, 255]], [[255, 0], [0, 1]]]),
    ],
)
def test_another_meaning_of_values_does_not_find_the_old_masks(
    root: Path, keys: dict[str, Any], expected: Any
) -> None:
    run(root)
    assert as_lists(run(root, **keys)) == expected
    assert as_lists(run(root)) == KNOWN


def test_another_size_or_fit_does_not_find_the_old_masks(root: Path) -> None:
    run(root)
    assert run(root, size=4).train.labels.shape == (3, 4, 4)
    write(root, 0, [[0, 1], [2, 2]], side=8)
    Image.new("L", (16, 8)).save(root / "images/0.png")
    Image.new("L", (16, 8)).save(root / "masks/0.png")
    assert as_lists(run(root, fit="pad"))[0] != as_lists(run(root))[0]


def test_images_and_masks_of_the_same_files_are_apart(root: Path) -> None:
    """A folder of masks can be one of images: the pixels of the one are no classes of the other."""
    both = root.parent / "both"
    (both / "images").mkdir(parents=True)
    for folder in ("images", "masks"):
        (both / folder).mkdir(exist_ok=True)
        for number in range(2):
            Image.fromarray(np.full((4, 4), 40 + number, np.uint8)).save(both / folder / f"{number}.png")
    found = run(both, values=[40, 41])
    images = found.train.images[np.argsort(found.train.names), ..., 0]
    assert images.tolist() == [[[40] * 2] * 2, [[41] * 2] * 2]
    assert as_lists(found) == [[[0] * 2] * 2, [[1] * 2] * 2]


def test_a_wrong_mask_leaves_nothing_behind(root: Path) -> None:
    write(root, 3, [[0, 0], [1, 77]])
    for _ in range(2):
        with pytest.raises(DataError, match=r"masks/3\.png: the value 77 is none of data.values and"):
            run(root, classes=["a", "b", "c"])
    kept = [one for one in (root.parent / "cache").iterdir() if one.name != "seen"]
    assert kept == []
    write(root, 3, [[2, 0], [0, 1]])
    assert as_lists(run(root, classes=["a", "b", "c"])) == KNOWN
