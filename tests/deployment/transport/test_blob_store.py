"""The folder that two processes share: complete files, checked names, one run of the machine."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from fedvision.deployment.transport import blob_store
from fedvision.deployment.transport.blob_store import BlobStore

CONTENT = b"ArrayChunk  3\0abc"
NAME = hashlib.sha256(CONTENT).hexdigest()


def test_what_was_put_is_there_in_one_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "s")
    assert not store.is_open
    store.open()
    assert store.is_open
    assert store.get(NAME) is None
    store.put(NAME, CONTENT[:5], memoryview(CONTENT)[5:])
    held = store.get(NAME)
    assert held is not None
    assert bytes(held) == CONTENT
    assert store.holds(NAME)
    assert {path.name for path in (tmp_path / "s").iterdir()} == {NAME, "boot"}
    assert (tmp_path / "s" / NAME).stat().st_mode & 0o077 == 0
    store.remove(NAME)
    store.remove(NAME)
    assert store.get(NAME) is None


def test_a_file_with_another_content_than_its_name_is_absent(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "s")
    store.open()
    store.put(NAME, CONTENT + b"!")
    assert not store.holds(NAME)
    assert not store.holds("0" * 64)


@pytest.mark.parametrize(
    "name", ["", "boot", "../" + "0" * 61, "0" * 63, "0" * 65, "G" * 64, "0" * 64 + "\n"]
)
def test_a_name_that_is_no_digest_reaches_no_file(tmp_path: Path, name: str) -> None:
    store = BlobStore(tmp_path)
    store.open()
    assert store.get(name) is None
    assert not store.holds(name)
    with pytest.raises(ValueError, match="no digest"):
        store.put(name, CONTENT)


def test_a_full_disk_leaves_nothing_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path)
    store.open()

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blob_store.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.put(NAME, CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["boot"]


def test_two_threads_may_put_the_same_object_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, replace = BlobStore(tmp_path), os.replace
    store.open()

    def interrupted(part: Path, path: Path) -> None:
        monkeypatch.setattr(blob_store.os, "replace", replace)
        other = threading.Thread(target=store.put, args=(NAME, CONTENT))
        other.start()
        other.join()
        replace(part, path)

    monkeypatch.setattr(blob_store.os, "replace", interrupted)
    store.put(NAME, CONTENT)
    assert store.holds(NAME)
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, "boot"]


def test_files_of_an_earlier_run_of_the_machine_cannot_be_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path)
    assert not store.open(), "a new folder"
    assert store.open(), "a process of the same run"
    monkeypatch.setattr(blob_store, "_this_boot", lambda: "another")
    assert not store.open()
    assert store.open()
    monkeypatch.setattr(blob_store, "_this_boot", lambda: "")
    assert not store.open()
    assert not store.open(), "a system that does not report it"


def test_keep_only_removes_the_rest(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.open()
    for name in ("0" * 64, "1" * 64):
        store.put(name, b"x")
    (tmp_path / "half.part").write_bytes(b"")
    store.keep_only({"1" * 64})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1" * 64, "boot"]
