"""The folder that two processes share: complete files, checked names, one run of the machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fedvision.deployment.transport import blob_store
from fedvision.deployment.transport.blob_store import BlobStore

CONTENT = b"ArrayChunk  3\0abc"
NAME = hashlib.sha256(CONTENT).hexdigest()


def test_what_was_put_is_there_in_one_file(tmp_path: Path) -> None:
    kept = BlobStore(tmp_path / "s")
    assert not kept.is_open
    kept.open()
    assert kept.is_open
    assert kept.get(NAME) is None
    kept.put(NAME, CONTENT[:5], memoryview(CONTENT)[5:])
    held = kept.get(NAME)
    assert held is not None
    assert bytes(held) == CONTENT
    assert kept.holds(NAME)
    assert {path.name for path in (tmp_path / "s").iterdir()} == {NAME, "boot"}
    assert (tmp_path / "s" / NAME).stat().st_mode & 0o077 == 0
    kept.remove(NAME)
    kept.remove(NAME)
    assert kept.get(NAME) is None


def test_a_file_that_is_not_what_its_name_says_is_not_held(tmp_path: Path) -> None:
    kept = BlobStore(tmp_path / "s")
    kept.open()
    kept.put(NAME, CONTENT + b"!")
    assert not kept.holds(NAME)
    assert not kept.holds("0" * 64)


@pytest.mark.parametrize(
    "name", ["", "boot", "../" + "0" * 61, "0" * 63, "0" * 65, "G" * 64, "0" * 64 + "\n"]
)
def test_a_name_that_is_no_digest_reaches_no_file(tmp_path: Path, name: str) -> None:
    kept = BlobStore(tmp_path)
    kept.open()
    assert kept.get(name) is None
    assert not kept.holds(name)
    with pytest.raises(ValueError, match="no digest"):
        kept.put(name, CONTENT)


def test_a_full_disk_leaves_nothing_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = BlobStore(tmp_path)
    kept.open()

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blob_store.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        kept.put(NAME, CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["boot"]


def test_files_of_an_earlier_run_of_the_machine_cannot_be_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = BlobStore(tmp_path)
    assert not kept.open(), "a new folder"
    assert kept.open(), "a process of the same run"
    monkeypatch.setattr(blob_store, "_this_boot", lambda: "another")
    assert not kept.open()
    assert kept.open()
    monkeypatch.setattr(blob_store, "_this_boot", lambda: "")
    assert not kept.open()
    assert not kept.open(), "a system that does not tell"


def test_keep_only_removes_the_rest(tmp_path: Path) -> None:
    kept = BlobStore(tmp_path)
    kept.open()
    for name in ("0" * 64, "1" * 64):
        kept.put(name, b"x")
    (tmp_path / "half.part").write_bytes(b"")
    kept.keep_only({"1" * 64})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1" * 64, "boot"]
