"""Folders as people have them: one tree or parts, further levels, empty classes, strays."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision import registry
from fedvision.data.dataset import Dataset
from fedvision.data.sources.image_folder import image_folder
from fedvision.errors import DataError, PluginError
from fedvision.types import PluginSpec
from tests.data.pictures import save, shades, spoil


def read(root: Path, **keys: Any) -> Dataset:
    return image_folder(**{"path": str(root), "size": 4, "channels": 1, "workers": 1} | keys)


def fill(root: Path, *folders: str, each: int = 2) -> None:
    """Put images into folders; the shade is the number of the folder times ten plus that of the image."""
    for place, folder in enumerate(folders):
        for number in range(each):
            save(root / folder / f"{number}.png", 10 * place + number)


def labelled(dataset: Dataset) -> dict[int, str]:
    """Return shade -> class name of the training images."""
    names = [dataset.classes[label] for label in dataset.train.labels]
    return dict(zip(shades(dataset.train.images), names, strict=True))


def test_one_tree(tmp_path: Path) -> None:
    fill(tmp_path, "dog", "cat")
    dataset = read(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert labelled(dataset) == {0: "dog", 1: "dog", 10: "cat", 11: "cat"}
    assert dataset.test is None
    assert dataset.notices == ()
    assert dataset.train.columns == {}


def test_image_names_stay_in_their_process(tmp_path: Path) -> None:
    """Each image knows its file but takes no names along to another process."""
    fill(tmp_path, "dog", "cat")
    spoil(tmp_path / "cat/0.png")
    train = read(tmp_path, max_unreadable=0.5).train
    own = {0: "dog/0.png", 1: "dog/1.png", 11: "cat/1.png"}
    assert dict(zip(shades(train.images), train.names, strict=True)) == own
    assert pickle.loads(pickle.dumps(train)).names == ()


def test_one_tree_with_a_share_for_the_test(tmp_path: Path) -> None:
    fill(tmp_path, "cat", "dog", each=10)
    dataset = read(tmp_path, validation=0.2)
    assert dataset.test
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]
    again = read(tmp_path, validation=0.2)
    np.testing.assert_array_equal(dataset.train.images, again.train.images)


def test_parts(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog", "test/cat", "val/dog")
    dataset = read(tmp_path)
    assert labelled(dataset) == {0: "cat", 1: "cat", 10: "dog", 11: "dog"}
    assert dataset.test
    assert shades(dataset.test.images) == [20, 21]
    assert dataset.notices == ('2 validation images are left out; val = "train" or "test" uses them',)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_val_is_the_test_set_where_there_is_no_other(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "train/cat", f"{name}/cat")
    dataset = read(tmp_path)
    assert dataset.test
    assert shades(dataset.test.images) == [10, 11]
    assert read(tmp_path, val="train").test is None


def test_a_class_of_the_test_set_alone_is_a_class(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "test/cat", "test/ant")
    dataset = read(tmp_path)
    assert dataset.classes == ("ant", "cat")
    assert dataset.notices == ()


def test_natural_clients(tmp_path: Path) -> None:
    fill(tmp_path, "north/cat", "north/dog", "south/cat")
    dataset = read(tmp_path, levels=["client", "class"])
    assert dataset.classes == ("cat", "dog")
    clients = dict(zip(shades(dataset.train.images), dataset.train.columns["client"].tolist(), strict=True))
    assert clients == {0: "north", 1: "north", 10: "north", 11: "north", 20: "south", 21: "south"}
    assert labelled(dataset) == {0: "cat", 1: "cat", 10: "dog", 11: "dog", 20: "cat", 21: "cat"}


def test_levels_inside_parts_in_any_order(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/2024/north", "test/cat/2025/south")
    dataset = read(tmp_path, levels=["class", "year", "client"])
    assert dataset.classes == ("cat",)
    assert dataset.train.columns["year"].tolist() == ["2024", "2024"]
    assert dataset.test
    assert dataset.test.columns["client"].tolist() == ["south", "south"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, "train", "bus")
    assert read(tmp_path).classes == ("bus", "train")


def test_an_empty_class_folder_is_a_class_with_a_notice(tmp_path: Path) -> None:
    fill(tmp_path, "cat", "dog")
    (tmp_path / "cow").mkdir()
    dataset = read(tmp_path)
    assert dataset.classes == ("cat", "cow", "dog")
    assert dataset.notices == ()


def test_named_classes_fix_the_labels_of_a_client_that_lacks_some(tmp_path: Path) -> None:
    fill(tmp_path, "dog")
    dataset = read(tmp_path, classes=["cat", "dog", "emu"])
    assert dataset.classes == ("cat", "dog", "emu")
    assert dataset.train.labels.tolist() == [1, 1]
    with pytest.raises(DataError, match=r"class 'dog' is not in data\.classes; did you mean 'dogs'"):
        read(tmp_path, classes=["cat", "dogs"])


def test_images_too_deep_are_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    fill(tmp_path, "north/cat")
    message = (
        r"north/cat/0\.png: it lies 2 folders deep, but levels = \['class'\] names 1; "
        r'.*levels = \["client", "class"\]'
    )
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_notice_on_images_outside_of_class_folders(tmp_path: Path) -> None:
    fill(tmp_path / "tree", "cat", ".")
    assert read(tmp_path / "tree").notices == (
        "2 images lie outside the class folders and are left out: 0.png, 1.png",
    )
    fill(tmp_path / "parts", "train/cat", "extra/cat")
    assert read(tmp_path / "parts").notices == (
        "2 images lie outside the class folders of train, test and val and are left out: "
        "extra/cat/0.png, extra/cat/1.png",
    )


def test_notice_on_files_of_another_kind(tmp_path: Path) -> None:
    fill(tmp_path, "cat")
    for name in ("1.dcm", "2.dcm", "3.heic", "notes.txt", "Thumbs.db"):
        (tmp_path / "cat" / name).touch()
    (notice,) = read(tmp_path).notices
    assert notice.startswith("3 files are no images by their suffix (2 .dcm, 1 .heic); known: .bmp")


def test_notice_on_unreadable_images(tmp_path: Path) -> None:
    fill(tmp_path, "cat", "dog")
    spoil(tmp_path / "dog/0.png")
    dataset = read(tmp_path, max_unreadable=0.25)
    assert labelled(dataset) == {0: "cat", 1: "cat", 11: "dog"}
    assert "dog/0.png (no known image format)" in dataset.notices[0]
    with pytest.raises(DataError, match=r"1 of 4 image files \(25\.0%\) cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("folder", "keys", "pattern"),
    [
        ("none", {}, r"none: this folder cannot be read: No such file"),
        ("empty", {}, r"empty: there are no images in CLASS/ or train/CLASS/; correct data\.path or levels"),
        ("flat", {}, r"no images in CLASS/ .*; 2 lie elsewhere, such as 0\.png"),
        ("tree", {"levels": ["client", "class"]}, r"no images in CLIENT/CLASS/ .*such as cat/0\.png"),
    ],
)
def test_no_images(tmp_path: Path, folder: str, keys: dict[str, Any], pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "flat", ".")
    fill(tmp_path / "tree", "cat")
    with pytest.raises(DataError, match=pattern):
        read(tmp_path / folder, **keys)


@pytest.mark.parametrize(
    "levels", ["class", [], ["client"], ["class", "class"], 1, ["a", "a", "class"], [1, "class"]]
)
def test_wrong_levels(tmp_path: Path, levels: Any) -> None:
    with pytest.raises(ValueError, match='levels must be a list of different names, "class" among them'):
        read(tmp_path, levels=levels)


def test_by_name_in_an_experiment(tmp_path: Path) -> None:
    fill(tmp_path, "cat", "dog")
    args = {"path": str(tmp_path), "size": 4, "channels": 3}
    dataset = registry.build("data", PluginSpec(use="image-folder", args=args))
    assert dataset.train.images.shape == (4, 4, 4, 3)
    with pytest.raises(PluginError, match=r"image-folder.*channels must be 1"):
        registry.build("data", PluginSpec(use="image-folder", args=args | {"channels": 2}))
    with pytest.raises(PluginError, match="'size' is missing"):
        registry.build("data", PluginSpec(use="image-folder", args={"path": "x"}))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training_set", "test_set"),
        ("train", "valid"),
    ],
)
def test_parts_under_other_names(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path, f"{train}/cat", f"{train}/dog", f"{test}/cat")
    dataset = read(tmp_path)
    assert labelled(dataset) == {0: "cat", 1: "cat", 10: "dog", 11: "dog"}
    assert dataset.test
    assert shades(dataset.test.images) == [20, 21]


@pytest.mark.parametrize(
    ("train", "test", "notices"),
    [
        (["train/train"], "test/test", ()),
        (["trainval"], "test", ()),
        (
            ["seg_train/seg_train"],
            "seg_test/seg_test",
            ("folders are read as parts of the data set: seg_test as test, seg_train as train",),
        ),
        (
            ["train1", "train2"],
            "test",
            ("folders are read as parts of the data set: train1 as train, train2 as train",),
        ),
    ],
)
def test_parts_whose_folders_are_doubled_or_only_hint(
    train: list[str], test: str, notices: tuple[str, ...], tmp_path: Path
) -> None:
    """The advice for such a tree was to train on the test images."""
    fill(tmp_path, *(f"{top}/{name}" for top in train for name in ("cat", "dog")), f"{test}/cat")
    dataset = read(tmp_path)
    assert (dataset.classes, len(dataset.train), dataset.notices) == (("cat", "dog"), 4 * len(train), notices)
    assert dataset.test
    assert len(dataset.test) == 2


def test_parts_below_classes(tmp_path: Path) -> None:
    fill(tmp_path, "cat/train", "cat/Test", "dog/train")
    with pytest.raises(DataError, match=r'name its level \'split\', such as levels = \["class", "split"\]'):
        read(tmp_path)
    dataset = read(tmp_path, levels=["class", "split"])
    assert labelled(dataset) == {0: "cat", 1: "cat", 20: "dog", 21: "dog"}
    assert dataset.test
    assert shades(dataset.test.images) == [10, 11]
    fill(tmp_path, "dog/other")
    with pytest.raises(
        DataError, match="the level 'split' has a folder 'other'; it must be train, val or test"
    ):
        read(tmp_path, levels=["class", "split"])


def test_parts_one_folder_further_down(tmp_path: Path) -> None:
    fill(tmp_path, "chest/Training/cat", "chest/Testing/cat")
    with pytest.raises(DataError, match=r"is a part of a data set: set data\.path to .*/chest$"):
        read(tmp_path)


@pytest.mark.parametrize("level", ["client", "year"])
def test_parts_are_no_clients(tmp_path: Path, level: str) -> None:
    """What the levels name a client would be trained on, test images included."""
    fill(tmp_path, "Training/cat", "Testing/cat")
    with pytest.raises(
        DataError, match=rf"level '{level}' are Testing, Training, which are parts of a data set"
    ):
        read(tmp_path, levels=[level, "class"])


@pytest.mark.parametrize(
    "folders", [["train"], ["train", "test"], ["train", "test1"], ["seg_train", "seg_test"]]
)
def test_parts_are_no_classes(tmp_path: Path, folders: list[str]) -> None:
    """Kaggle's train/cat.0.png has its label in the file's name: "train" would be the only class."""
    fill(tmp_path, *folders)
    with pytest.raises(DataError, match=r"which are parts of a data set; put images into train/CLASS/"):
        read(tmp_path)
    assert read(tmp_path, classes=sorted(folders)).classes == tuple(sorted(folders))


def test_composed_and_decomposed_names_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    fill(tmp_path, f"train/{composed}", f"train/{decomposed}", f"test/{decomposed}")
    dataset = read(tmp_path)
    assert dataset.classes == (composed,)
    assert dataset.test
    assert read(tmp_path, classes=[decomposed]).classes == (composed,)


def test_notice_on_classes_that_differ_in_case(tmp_path: Path) -> None:
    fill(tmp_path, "Cat", "cat", "dog")
    (notice,) = read(tmp_path).notices
    assert notice.startswith("classes 'Cat' and 'cat' differ only in case or blanks")


def test_numbers_are_sorted_by_value(tmp_path: Path) -> None:
    fill(tmp_path, "10", "9", "2")
    assert read(tmp_path).classes == ("2", "9", "10")


def test_a_folder_of_missing_labels_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "cat", "nan")
    with pytest.raises(DataError, match="class 'nan' stands for a missing value"):
        read(tmp_path)
    assert read(tmp_path, classes=["cat", "nan"]).classes == ("cat", "nan")


def test_only_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    for name in ("1.dcm", "2.dcm", "3.nii.gz", "4.heic"):
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / name).touch()
    with pytest.raises(
        DataError, match=r"there are 2 \.dcm, 1 \.(nii\.gz|heic), 1 \.(nii\.gz|heic): convert them to"
    ):
        read(tmp_path)
