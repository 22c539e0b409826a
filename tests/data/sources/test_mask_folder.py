"""Folders of images and masks: which belong together, what values mean, one geometry, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvision import registry
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset
from fedvision.data.decoding.mask_files import unfitted
from fedvision.errors import DataError, PluginError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVISION_CACHE", str(tmp_path / "cache"))


def read(path: Path, **keys: Any) -> Dataset:
    table = {"use": "mask-folder", "path": str(path), "size": 8, "workers": 1, **keys}
    found: Dataset = registry.build("data", ExperimentConfig.from_dict({"data": table}).data)
    return found


def mask_of(shape: tuple[int, int], seed: int = 0, classes: int = 3) -> np.ndarray:
    """Return blocks of classes."""
    rng = np.random.default_rng(seed)
    height, width = shape
    coarse = rng.integers(0, classes, (-(-height // 4), -(-width // 4)), np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1)[:height, :width]


def pair(
    root: Path,
    name: str,
    shape: tuple[int, int] = (16, 16),
    seed: int = 0,
    *,
    mask: str = "",
    values: np.ndarray | None = None,
) -> np.ndarray:
    """Write an image, 60 times its mask, and the mask; return the mask."""
    shown = mask_of(shape, seed)
    image, drawn = root / "images" / f"{name}.png", root / "masks" / f"{mask or name}.png"
    for file in (image, drawn):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(60 * shown).save(image)
    Image.fromarray(shown if values is None else values).save(drawn)
    return shown


def test_an_image_and_its_mask_have_one_geometry(tmp_path: Path) -> None:
    for number in range(4):
        pair(tmp_path, f"a{number}", (16, 16), number)
    found = read(tmp_path, channels=1, size=16, fit="exact")
    assert found.train.labels.dtype == np.uint8
    assert np.array_equal(found.train.images[..., 0], 60 * found.train.labels)
    assert found.classes == ("0", "1", "2")


def test_no_mask_of_the_only_size_wanted(tmp_path: Path) -> None:
    """Pixels of masks that are left out are not told as ignored ones."""
    pair(tmp_path, "a", (16, 16))
    with pytest.raises(DataError, match="needs masks of 8 x 8 pixels, and none is"):
        read(tmp_path, size=8, fit="exact")


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_masks_take_the_nearest_value_and_lie_where_the_image_does(
    fit: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    shown = mask_of(shape)
    pair(tmp_path, "a", shape, values=shown)
    mask = read(tmp_path, channels=1, size=8, fit=fit).train.labels[0]
    if fit == "crop":
        cut = shown[:, 4:20] if shape[1] == 24 else shown[4:20]
        assert np.array_equal(mask, cut[1::2, 1::2])
    elif fit == "stretch":
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert mask.shape == (8, 8)
    else:
        bars = mask == 255
        assert bars.any(axis=1).all() if shape == (24, 16) else bars.any(axis=0).all()
        assert bars.sum() == 8 * 3
    back = unfitted(mask, fit, shape)
    assert back.shape == shape
    known = back != 255
    assert known.mean() == pytest.approx(16 / 24 if fit == "crop" else 1.0)
    assert (back[known] == shown[known]).mean() > 0.75


def test_parts_lie_above_or_below_both_folders(tmp_path: Path) -> None:
    pair(tmp_path / "below", "train/x/a")
    pair(tmp_path / "below", "Testing/b", seed=1)
    for part in ("train", "test"):
        pair(tmp_path / "above" / part, "a", seed=2)
    for layout in ("below", "above"):
        found = read(tmp_path / layout)
        assert found.test is not None
        assert (len(found.train), len(found.test)) == (1, 1)
    pair(tmp_path / "below", "c")
    with pytest.raises(DataError, match=r"images/c\.png lies in no folder train, test or val"):
        read(tmp_path / "below")


@pytest.mark.parametrize("mask", ["a_mask", "mask_a", "a-seg", "a"])
def test_a_mask_is_named_as_its_image_or_as_its_mask(mask: str, tmp_path: Path) -> None:
    shown = pair(tmp_path, "a", mask=mask)
    assert np.array_equal(read(tmp_path, size=16).train.labels[0], shown)


def test_both_may_lie_in_one_folder(tmp_path: Path) -> None:
    shown = mask_of((16, 16))
    Image.fromarray(60 * shown).save(tmp_path / "a.png")
    Image.fromarray(shown).save(tmp_path / "a_mask.png")
    found = read(tmp_path, size=16, images="", masks="")
    assert np.array_equal(found.train.labels[0], shown)


def test_a_palette_is_read_as_its_numbers_and_black_and_white_as_classes(tmp_path: Path) -> None:
    shown = pair(tmp_path, "a")
    for name, make in (("P", lambda one: one.convert("P")), ("RGB", lambda one: one.convert("RGB"))):
        image = Image.fromarray(shown)
        image.putpalette([10, 20, 30] * 256)
        (image if name == "P" else make(Image.fromarray(shown))).save(tmp_path / "masks/a.png")
        assert np.array_equal(read(tmp_path, size=16).train.labels[0], shown)
    Image.fromarray(np.where(shown > 0, 255, 0).astype(np.uint8)).save(tmp_path / "masks/a.png")
    found = read(tmp_path, size=16, values=[0, 255], classes=["ground", "cell"])
    assert np.array_equal(found.train.labels[0], shown > 0)
    Image.fromarray(shown > 0).save(tmp_path / "masks/a.png")
    assert np.array_equal(read(tmp_path, size=16).train.labels[0], shown > 0)
    Image.fromarray(500 * shown.astype(np.uint16)).save(tmp_path / "masks/a.png")
    assert np.array_equal(read(tmp_path, size=16, values=[0, 500, 1000]).train.labels[0], shown)


def test_colours_and_what_is_ignored(tmp_path: Path) -> None:
    shown = pair(tmp_path, "a")
    table = np.array([[0, 0, 0], [255, 0, 7], [1, 2, 3]], np.uint8)
    Image.fromarray(table[shown]).save(tmp_path / "masks/a.png")
    assert np.array_equal(read(tmp_path, size=16, colours=table.tolist()).train.labels[0], shown)
    with pytest.raises(DataError, match=r"a\.png: the colour \[1, 2, 3\] is none of data\.colours"):
        read(tmp_path, colours=table[:2].tolist())
    with pytest.raises(DataError, match="is a picture of colours; list the colour of each class"):
        read(tmp_path)
    pair(tmp_path, "a", values=shown)
    found = read(tmp_path, size=16, ignore=0, values=[1, 2])
    assert np.array_equal(found.train.labels[0], np.array([255, 0, 1], np.uint8)[shown])
    assert found.classes == ("1", "2")


def test_names_give_columns_and_groups_stay_together(tmp_path: Path) -> None:
    for patient in range(5):
        for image in range(3):
            pair(tmp_path, f"ward{patient % 2}/p{patient}_{image}", seed=patient)
    pattern = r"(?P<ward>ward\d)/(?P<patient>p\d)_"
    found = read(tmp_path, columns=pattern, group="patient", validation=0.4)
    assert found.test is not None
    assert set(found.train.columns) == {"ward", "patient"}
    here, there = (set(part.columns["patient"].tolist()) for part in (found.train, found.test))
    assert here.isdisjoint(there)
    assert len(here | there) == 5
    with pytest.raises(DataError, match=r"data\.columns = .* is not in the name images/ward0/p0_0"):
        read(tmp_path, columns="(?P<x>q)")
    for wrong, problem in (("(", "no regular expression"), ("p", "names no group")):
        with pytest.raises(PluginError, match=problem):
            read(tmp_path, columns=wrong)


def test_what_does_not_belong_together_is_refused_by_name(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    Image.new("L", (16, 16)).save(tmp_path / "images/b.png")
    with pytest.raises(DataError, match=r"1 images have no mask: images/b\.png; add masks"):
        read(tmp_path)
    (tmp_path / "images/b.png").rename(tmp_path / "masks/b.png")
    with pytest.raises(DataError, match=r"1 masks have no image: masks/b\.png; call each as its image"):
        read(tmp_path)
    (tmp_path / "masks/b.png").rename(tmp_path / "masks/a_mask.png")
    with pytest.raises(DataError, match=r"masks/a.* and masks/a.* are both the mask of images/a\.png"):
        read(tmp_path)
    (tmp_path / "masks/a_mask.png").rename(tmp_path / "images/a.jpg")
    with pytest.raises(DataError, match=r"images/a\.jpg and images/a\.png are one image by their names"):
        read(tmp_path)


def test_a_mask_of_another_size_or_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    pair(tmp_path, "a", (16, 20))
    Image.new("L", (16, 20)).save(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match=r"masks/a\.png: the mask is 20 x 16 and its image .* is 16 x 20"):
        read(tmp_path)
    (tmp_path / "masks/a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"masks/a\.png: this mask cannot be read: it is none of PNG"):
        read(tmp_path)
    (tmp_path / "masks/a.png").unlink()
    Image.new("L", (20, 16)).save(tmp_path / "masks/a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: this mask cannot be read: JPEG changes values; save it"):
        read(tmp_path)
    (tmp_path / "masks/a.jpg").unlink()
    Image.new("L", (20, 16), 7).save(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match=r"a\.png: the value 7 is no class: 2 are named, so 0 to 1"):
        read(tmp_path, classes=["ground", "cell"])


def test_an_image_that_cannot_be_read_is_left_out_with_its_mask(tmp_path: Path) -> None:
    for number in range(3):
        pair(tmp_path, f"a{number}", seed=number)
    (tmp_path / "images/a1.png").write_bytes(b"no picture")
    found = read(tmp_path, size=16, channels=1, max_unreadable=0.5)
    assert len(found.train) == 2
    assert np.array_equal(found.train.images[..., 0], 60 * found.train.labels)
    assert any("a1.png" in notice for notice in found.notices)


def test_a_turned_image_is_compared_upright(tmp_path: Path) -> None:
    pair(tmp_path, "a", (16, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter: what is 20 wide and 16 high is shown 16 wide
    Image.new("L", (20, 16)).save(tmp_path / "images/a.png", exif=exif)
    with pytest.raises(DataError, match=r"the mask is 16 x 20 and its image images/a\.png is 20 x 16"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"values": [0, 1], "colours": [[0, 0, 0]]}, "leave one of them"),
        ({"values": [0, 0]}, "values must be different"),
        ({"values": [0, 1], "classes": ["a"]}, "values has 2 entries, and classes names 1"),
        ({"values": [-1]}, "whole number >= 0, not -1"),
        ({"colours": [[0, 0, 300]]}, "each from 0 to 255"),
    ],
)
def test_keys_that_contradict_each_other(keys: dict[str, Any], problem: str, tmp_path: Path) -> None:
    pair(tmp_path, "a")
    with pytest.raises(PluginError, match=problem):
        read(tmp_path, **keys)


def test_a_folder_without_the_folders(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"there are no images in images/; 1 images lie elsewhere"):
        read(tmp_path)


def test_a_table_may_name_the_masks(tmp_path: Path) -> None:
    shown = [pair(tmp_path, f"a{number}", seed=number) for number in range(3)]
    rows = [
        f"images/a{number}.png,masks/a{number}.png,{'test' if number else 'train'},w" for number in range(3)
    ]
    (tmp_path / "list.csv").write_text("\n".join(["file,mask,split,ward", *rows]))
    table = {"use": "manifest", "path": str(tmp_path / "list.csv"), "size": 16, "workers": 1}

    def load(**keys: Any) -> Dataset:
        config = ExperimentConfig.from_dict({"data": {**table, "mask": "mask", **keys}})
        found: Dataset = registry.build("data", config.data)
        return found

    found = load()
    assert found.test is not None
    assert np.array_equal(found.train.labels, shown[:1])
    assert np.array_equal(found.test.labels, shown[1:])
    assert found.train.columns["ward"].tolist() == ["w"]
    with pytest.raises(PluginError, match="remove the keys of labels, or mask"):
        load(label="ward")
    with pytest.raises(DataError, match=r"there is no column 'drawn'.*data\.mask names it"):
        load(mask="drawn")
    (tmp_path / "masks/a1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 files are not in .*: masks/a1\.png \(line 3\)"):
        load()
