"""Folders as public sets of masks unpack, beside torchvision's readers of the same folders."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes, OxfordIIITPet, VOCSegmentation

from fedvision import registry
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.errors import DataError, PluginError

DOCS = Path(__file__).parents[3] / "docs/segmentation.md"
SIDE = 16


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVISION_CACHE", str(tmp_path / "cache"))


def documented(folder: str) -> dict[str, Any]:
    """Return the ``[data]`` table of the documentation that reads a folder."""
    pieces = DOCS.read_text().split("```toml\n")[1:]
    tables = (tomllib.loads(piece.split("```")[0])["data"] for piece in pieces)
    (found,) = (table for table in tables if table["path"] == folder)
    return {**found, "size": SIDE, "workers": 1}


def load(root: Path, table: dict[str, Any], **keys: Any) -> Dataset:
    config = ExperimentConfig.from_dict({"data": {**table, "path": str(root), **keys}})
    found: Dataset = registry.build("data", config.data)
    return found


def write(file: Path, pixels: np.ndarray, palette: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(np.arange(768, dtype=np.uint8).tobytes())
    image.save(file)


def some(values: list[int], seed: int) -> np.ndarray:
    """Return a mask uint8 [SIDE, SIDE] of these values, all of which occur."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.resize(np.array(values, np.uint8), SIDE * SIDE)).reshape(SIDE, SIDE)


def photo(seed: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), 10 * seed, np.uint8)


def same(ours: ImageSet | None, theirs: Any, meaning: dict[int, int]) -> None:
    """Compare images and masks with torchvision's, whatever the order; other values than these are 255."""
    assert ours is not None
    table = np.array([meaning.get(value, 255) for value in range(256)], np.uint8)
    wanted = [(np.asarray(image), table[np.asarray(mask)]) for image, mask in theirs]
    assert len(ours) == len(wanted)
    left = list(range(len(wanted)))
    for image, mask in zip(ours.images, ours.labels, strict=True):
        place = next(place for place in left if np.array_equal(wanted[place][0], image))
        assert np.array_equal(wanted[place][1], mask)
        left.remove(place)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Return the folder of OxfordIIITPet, with what lies beside images and trimaps."""
    root = tmp_path / "oxford-iiit-pet"
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for number in range(6):
        breed = ("Abyssinian", "american_bulldog")[number % 2]
        name = f"{breed}_{number}"
        write(root / f"images/{name}.jpg", photo(number))
        write(root / f"annotations/trimaps/{name}.png", some([1, 2, 3], number))
        (root / f"annotations/trimaps/._{name}.png").write_bytes(b"of another system")
        lists["test" if number > 3 else "trainval"].append(f"{name} {number % 2 + 1} 1 1\n")
    write(root / "images/unlisted_9.jpg", photo(9))
    (root / "images/Abyssinian_100.mat").write_bytes(b"no image")
    (root / "annotations/xmls").mkdir()
    (root / "annotations/xmls/Abyssinian_0.xml").write_text("<annotation/>")
    (root / "annotations/list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n")
    for part, lines in lists.items():
        (root / f"annotations/{part}.txt").write_text("".join(lines))
    return root


def test_oxford_pets_are_read_as_torchvision_reads_them(pets: Path) -> None:
    found = load(pets, documented("oxford-iiit-pet"))
    assert found.classes == ("background", "pet")
    for part, split in ((found.train, "trainval"), (found.test, "test")):
        same(part, OxfordIIITPet(pets.parent, split, target_types="segmentation"), {2: 0, 1: 1})
    assert set(found.train.columns["breed"].tolist()) == {"Abyssinian", "american_bulldog"}
    (notice,) = found.notices
    assert notice == "1 images are in no list of data.names and are left out: images/unlisted_9.jpg"


CITIES = {"train": ("aachen", "bochum"), "val": ("munster",), "test": ("bonn",)}
IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    """Return the folder of Cityscapes; the masks of its test images say where the car is and no more."""
    root, number = tmp_path / "cityscapes", 0
    for split, cities in CITIES.items():
        for city in cities:
            for frame in range(2):
                number += 1
                name = f"{split}/{city}/{city}_00000{frame}_000019"
                write(root / f"leftImg8bit/{name}_leftImg8bit.png", photo(number))
                ids = some([0, 1] if split == "test" else list(range(34)), number)
                train_ids = np.array([IDS.index(i) if i in IDS else 255 for i in range(34)], np.uint8)[ids]
                for kind, values in (("labelIds", ids), ("labelTrainIds", train_ids)):
                    write(root / f"gtFine/{name}_gtFine_{kind}.png", values)
                write(root / f"gtFine/{name}_gtFine_color.png", photo(number))
                write(root / f"gtFine/{name}_gtFine_instanceIds.png", ids.astype(np.uint16))
                (root / f"gtFine/{name}_gtFine_polygons.json").write_text("{}")
    return root


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_are_read_as_torchvision_reads_them(kind: str, streets: Path) -> None:
    table = documented("cityscapes")
    keys: dict[str, Any] = {}
    if kind == "labelTrainIds":  # their values are the classes
        table = {key: value for key, value in table.items() if key not in ("values", "ignore")}
        keys = {"mask_suffix": "_gtFine_labelTrainIds.png"}
    found = load(streets, table, **keys)
    assert len(found.classes) == 19
    for part, split in ((found.train, "train"), (found.test, "val")):
        theirs = Cityscapes(str(streets), split, mode="fine", target_type="semantic")
        same(part, theirs, {value: place for place, value in enumerate(IDS)})
    assert sorted(found.train.columns["city"].tolist()) == ["aachen", "aachen", "bochum", "bochum"]
    ends, void = found.notices
    assert ends.startswith(
        "24 files do not end as data.image_suffix or data.mask_suffix says and are left out"
    )
    assert void.startswith("2 images have no pixel of a class and are left out: leftImg8bit/test/bonn/bonn_")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Return the folder of VOC2012; two of five images have no mask."""
    root = tmp_path / "VOCdevkit/VOC2012"
    names = [f"2007_00000{number}" for number in range(5)]
    for number, name in enumerate(names):
        write(root / f"JPEGImages/{name}.jpg", photo(number))
        if number < 3:
            for folder in ("SegmentationClass", "SegmentationObject"):
                write(root / f"{folder}/{name}.png", some([0, 1, 20, 255], number), palette=True)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for part, some_names in (("train", names[:2]), ("val", names[2:3]), ("trainval", names[:3])):
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in some_names))
    return root


def test_voc_is_read_as_torchvision_reads_it(devkit: Path) -> None:
    found = load(devkit, documented("VOCdevkit/VOC2012"))
    assert (found.classes[0], found.classes[20], len(found.classes)) == ("background", "tvmonitor", 21)
    for part, split in ((found.train, "train"), (found.test, "val")):
        theirs = VOCSegmentation(devkit.parents[1], image_set=split)
        same(part, theirs, {value: value for value in range(21)})
    assert any("2 images are in no list of data.names" in notice for notice in found.notices)


VOC = {"use": "mask-folder", "size": SIDE, "images": "JPEGImages", "masks": "SegmentationClass", "workers": 1}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("2007_000001\nnone\n", r"train\.txt, line 2: none has no image; a line begins with the name"),
        ("2007_000001\n\n2007_000001\n", r"line 3: 2007_000001 is in .*train\.txt, line 1 already; keep it"),
        ("# nothing\n\n", r"train\.txt: no line names an image; correct data\.names\.train"),
        ("2007_000004\n", r"1 images have no mask: JPEGImages/2007_000004\.jpg; add masks"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_by_its_line(lines: str, problem: str, devkit: Path) -> None:
    (devkit / "train.txt").write_text(lines)
    with pytest.raises(DataError, match=problem):
        load(devkit, VOC, names={"train": "train.txt"})


def test_lists_that_cannot_be_read_or_have_no_part(devkit: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: this list cannot be read: .*; correct data\.names\.val"):
        load(devkit, VOC, names={"train": "ImageSets/Segmentation/train.txt", "val": "none.txt"})
    (devkit / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="it is no text in UTF-8"):
        load(devkit, VOC, names={"train": "latin.txt"})
    for wrong in (
        "train.txt",
        {"val": "train.txt"},
        {"train": 1},
        {"train": "a.txt", "holdout": "b.txt"},
        {},
    ):
        with pytest.raises(PluginError, match="names must be a table of lists"):
            load(devkit, VOC, names=wrong)


def test_a_name_may_hold_spaces_and_folders(devkit: Path) -> None:
    for number in range(2):
        write(devkit / f"JPEGImages/ward a/p {number}.jpg", photo(number))
        write(devkit / f"SegmentationClass/ward a/p {number}.png", some([0, 1], number))
    (devkit / "train.txt").write_text("ward a/p 0\nward a/p 1\n")
    found = load(devkit, VOC, names={"train": "train.txt"})
    assert sorted(found.train.names) == ["JPEGImages/ward a/p 0.jpg", "JPEGImages/ward a/p 1.jpg"]


def test_suffixes_part_images_and_masks_of_one_folder(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"{number}_photo.png", photo(number))
        write(tmp_path / f"{number}_drawn.png", some([0, 1], number))
        write(tmp_path / f"{number}_more.png", photo(number))
    keys = {"use": "mask-folder", "size": SIDE, "images": "", "masks": "", "workers": 1}
    found = load(tmp_path, keys, image_suffix="_photo.png", mask_suffix="_drawn.png")
    for name, mask in zip(found.train.names, found.train.labels, strict=True):
        assert np.array_equal(mask, some([0, 1], int(name[0])))
    with pytest.raises(
        DataError, match=r"no images in it/ that end with data\.image_suffix = '_foto\.png'; .*suffix"
    ):
        load(tmp_path, keys, image_suffix="_foto.png", mask_suffix="_drawn.png")


def test_folders_of_which_no_suffix_is_given_say_so(streets: Path) -> None:
    keys = {"use": "mask-folder", "size": SIDE, "images": "leftImg8bit", "masks": "gtFine", "workers": 1}
    with pytest.raises(
        DataError, match=r"32 masks have no image: .*data\.image_suffix and data\.mask_suffix$"
    ):
        load(streets, keys)
    with pytest.raises(DataError, match=r"none of data\.values and data\.ignore; add it"):
        load(streets, documented("cityscapes"), ignore=[0, 1])
