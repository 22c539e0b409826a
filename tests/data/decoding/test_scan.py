"""What counts as an image below a folder, and what is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.data.decoding.scan import walk
from fedvision.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_images_are_known_by_their_suffix_in_any_case(tmp_path: Path) -> None:
    touch(tmp_path, "b/x.JPG", "a/y.Tiff", "a/x.png", "top.webp")
    tree = walk(tmp_path)
    assert tree.images == ("a/x.png", "a/y.Tiff", "b/x.JPG", "top.webp")
    assert tree.folders == ("a", "b")
    assert tree.others == {}


def test_usual_companions_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt", ".DS_Store", "a/Thumbs.db", "a/._x.png", "names.csv", ".git/x.png")
    touch(tmp_path, "__MACOSX/a/x.png", "desktop.ini")
    tree = walk(tmp_path)
    assert tree.images == ()
    assert tree.folders == ("a",)
    assert tree.others == {}


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.dcm", "a/2.DCM", "b/3.heic", "LICENSE")
    assert walk(tmp_path).others == {".dcm": 2, ".heic": 1, "no suffix": 1}


def test_empty_folders_are_listed(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    assert walk(tmp_path).folders == ("a", "a/b")


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.png")
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/a/circle").symlink_to(tmp_path / "root")
    tree = walk(tmp_path / "root")
    assert tree.images == ("link/x.png",)


def test_a_link_to_nowhere_is_an_image_that_cannot_be_read_later(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path / "gone.png")
    assert walk(tmp_path).images == ("x.png",)


def test_a_missing_folder_and_a_file_are_errors(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    with pytest.raises(DataError, match=r"none: this folder cannot be read: No such file .*data\.path"):
        walk(tmp_path / "none")
    with pytest.raises(DataError, match="file: this folder cannot be read: Not a directory"):
        walk(tmp_path / "file")
