"""The key follows the content, the fingerprint the names and times; neither is fooled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedvision.data.decoding import file_digest
from fedvision.data.decoding.process_pool import PixelFormat

RECIPE = PixelFormat(4, 1, "crop")


def key(root: Path, names: list[str], pixel_format: PixelFormat = RECIPE) -> str:
    return file_digest.key(file_digest.contents(root, names), pixel_format)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / name).write_text(name * 3)
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    return tmp_path


NAMES = ["a", "b", "c"]


def test_the_key_is_that_of_the_contents_in_order(root: Path) -> None:
    before = key(root, NAMES)
    (root / "a").rename(root / "z")
    os.utime(root / "b")
    assert key(root, ["z", "b", "c"]) == before
    assert key(root, ["b", "z", "c"]) != before
    assert key(root, ["z", "b"]) != before


def test_one_changed_byte_is_another_key(root: Path) -> None:
    before = key(root, NAMES)
    (root / "b").write_text("bbB")
    assert key(root, NAMES) != before


@pytest.mark.parametrize(
    "other", [PixelFormat(5, 1, "crop"), PixelFormat(4, 3, "crop"), PixelFormat(4, 1, "pad")]
)
def test_another_recipe_is_another_key_and_fingerprint(root: Path, other: PixelFormat) -> None:
    assert key(root, NAMES) != key(root, NAMES, other)
    assert file_digest.fingerprint(root, NAMES, RECIPE)[0] != file_digest.fingerprint(root, NAMES, other)[0]


def test_a_file_that_cannot_be_read_has_a_key_until_it_can(root: Path) -> None:
    before = key(root, NAMES)
    (root / "b").unlink()
    missing = key(root, NAMES)
    (root / "b").mkdir()
    assert len({before, missing, key(root, NAMES)}) == 3


def test_digests_of_many_files_stay_in_order(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digest, "_AHEAD", 2)
    many = list(file_digest.contents(root, NAMES * 5))
    assert many == list(file_digest.contents(root, NAMES)) * 5
    assert len(set(many)) == 3


def test_the_fingerprint_reads_no_file_and_knows_the_latest_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digest, "_content", None)
    first, latest = file_digest.fingerprint(root, NAMES, RECIPE)
    assert file_digest.fingerprint(root, NAMES, RECIPE) == (first, latest)
    assert latest == max(os.stat(root / name).st_ctime_ns for name in NAMES)


def test_a_change_that_restores_size_and_modification_time_is_seen(root: Path) -> None:
    before = file_digest.fingerprint(root, NAMES, RECIPE)[0]
    (root / "b").write_text("xyz")
    os.utime(root / "b", ns=(10**18, 10**18))
    assert file_digest.fingerprint(root, NAMES, RECIPE)[0] != before


def test_names_and_folders_are_part_of_the_fingerprint(root: Path) -> None:
    before = file_digest.fingerprint(root, NAMES, RECIPE)[0]
    assert file_digest.fingerprint(root, NAMES[:2], RECIPE)[0] != before
    assert file_digest.fingerprint(root, NAMES[::-1], RECIPE)[0] != before
    assert file_digest.fingerprint(root, [*NAMES[:2], "./c"], RECIPE)[0] != before
    assert file_digest.fingerprint(root / ".." / root.name, NAMES, RECIPE)[0] != before
