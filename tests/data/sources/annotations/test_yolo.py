"""YOLO's folders: layouts, names, polygons, parts by data.yaml, clients without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedvision.data.dataset import Dataset
from fedvision.data.sources.annotations.yolo import yolo
from fedvision.errors import DataError
from tests.data.annotated import picture, rows_of


def read(path: Path, **keys: Any) -> Dataset:
    given = {"path": str(path), "size": 8, "channels": 1, "workers": 1, "cache": str(path) + "-c"}
    return yolo(**given | keys)


def labelled(image: Path, text: str, label: Path | None = None) -> None:
    picture(image)
    label = label or image.with_suffix(".txt")
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_text(text)


def test_boxes_and_polygons_by_hand(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png", 8, 4)
    picture(tmp_path / "images/b.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0 0 1 0 0 1\n\n")
    dataset = read(tmp_path, classes=["cat", "dog"])
    assert rows_of(dataset.train) == {
        "images/a.png": [[1, 3, 1, 2, 2, 4, 0], [0, 0, 0, 8, 4, 16, 0]],
        "images/b.png": [],
    }
    assert dataset.notices == ("1 of 2 images have no text file, which says that they show no object",)


@pytest.mark.parametrize(
    "yaml",
    [
        "names: [cat, dog]\n",
        "names:\n  0: cat\n  1: dog\nnc: 2\ntrain: images/train\nval: images/val\ntest:  # none\n",
        "path: /content/elsewhere\nnames: [cat, dog]\ntrain: ../images/train\nval: [images/val]\n",
    ],
)
def test_parts_below_images(tmp_path: Path, yaml: str) -> None:
    for part, row in (("train", "0 .5 .5 .5 .5"), ("val", "1 .5 .5 .5 .5")):
        labelled(tmp_path / f"images/{part}/{part}.png", row, tmp_path / f"labels/{part}/{part}.txt")
    (tmp_path / "data.yaml").write_text(yaml)
    for path in (tmp_path, tmp_path / "data.yaml"):
        dataset = read(path)
        assert dataset.classes == ("cat", "dog")
        assert list(dataset.train.names) == ["images/train/train.png"]
        assert dataset.test is not None
        assert rows_of(dataset.test)["images/val/val.png"][0][0] == 1


def test_parts_that_only_the_file_names(tmp_path: Path) -> None:
    for folder in ("images/set1", "images/set2", "images/set3"):
        labelled(
            tmp_path / folder / "a.png",
            "0 .5 .5 .5 .5",
            tmp_path / folder.replace("images", "labels") / "a.txt",
        )
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images/set1\ntest: images/set2\n")
    dataset = read(tmp_path)
    assert list(dataset.train.names) == ["images/set1/a.png"]
    assert dataset.test is not None
    assert list(dataset.test.names) == ["images/set2/a.png"]
    assert dataset.notices[0] == (
        f"1 images are in no folder of {tmp_path}/data.yaml and left out: images/set3/a.png"
    )


def test_images_below_parts_and_a_moved_folder(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        labelled(tmp_path / part / "images/a.png", "0 .5 .5 .5 .5", tmp_path / part / "labels/a.txt")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: /gone/train\nval: /gone/val\n")
    dataset = read(tmp_path)
    assert list(dataset.train.names) == ["train/images/a.png"]
    assert (
        dataset.notices[0]
        == f"{tmp_path}/data.yaml: none of its folders is there; parts go by the names of folders"
    )


def test_beside_images_with_the_names_of_a_tool(tmp_path: Path) -> None:
    labelled(tmp_path / "a.png", "1 .5 .5 .5 .5")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "README.txt").write_text("read me")
    assert read(tmp_path).classes == ("cat", "dog")
    # An experiment's order, by name.
    dataset = read(tmp_path, classes=["dog", "cow"])
    assert rows_of(dataset.train)["a.png"][0][0] == 0


def test_several_images_of_one_text_file(tmp_path: Path) -> None:
    labelled(tmp_path / "a.png", "0 .5 .5 .5 .5")
    picture(tmp_path / "a.bmp")
    with pytest.raises(DataError, match=r"a.txt: it may belong to a.bmp or a.png"):
        read(tmp_path, classes=["cat"])


def test_hidden_files_of_other_systems_do_not_count(tmp_path: Path) -> None:
    labelled(tmp_path / "images/a.png", "0 .5 .5 .5 .5", tmp_path / "labels/a.txt")
    for name in ("labels/._a.txt", "__MACOSX/labels/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00\xff")
    assert len(rows_of(read(tmp_path, classes=["cat"]).train)["images/a.png"]) == 1


def test_lines_of_classes_txt_keep_their_numbers(tmp_path: Path) -> None:
    labelled(tmp_path / "a.png", "2 .5 .5 .5 .5")
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n\n")
    dataset = read(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert rows_of(dataset.train)["a.png"][0][0] == 1
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(DataError, match=r"classes.txt: the name 'cat' is there twice"):
        read(tmp_path)
