"""Contract tests of Flower's object store with its contents in files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
from flwr.supercore.object_store.object_store import NoObjectInStoreError

from fedvision.deployment.transport import (
    blob_store,
    internals_message_objects,
    internals_store,
    message_format,
)
from fedvision.deployment.transport.blob_store import IN_FILE, SMALL
from fedvision.deployment.transport.internals_store import FileObjectStore
from fedvision.flower import internals
from fedvision.flower.internals import TensorArray

RUN = 7


def message(value: float, client: int = 1) -> tuple[Any, dict[str, bytes]]:
    """Return the tree and the objects of a message with two pieces."""
    internals.identify(RUN)
    numbers = np.random.default_rng(int(value)).random(message_format.PIECE // 8 + 10_000)
    plain = RecordDict({"arrays": ArrayRecord({"w": TensorArray(torch.from_numpy(numbers))})})
    layout = message_format.describe(plain, client)
    pack_tensors = internals_message_objects.pack_tensors(message_format.TensorSource(plain, layout), layout)
    sent = Message(internals_message_objects.pack_message(layout, pack_tensors), 1, "train")
    tree, objects = internals_message_objects.objects_of(sent)
    return tree, {name: thing.deflate() for name, thing in objects.items()}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileObjectStore]:
    made = FileObjectStore(tmp_path / "objects")
    made.open()
    yield made
    made.close()


@contextmanager
def again(tmp_path: Path) -> Iterator[FileObjectStore]:
    """Open the store as the next process finds it; the last one was killed."""
    found = FileObjectStore(tmp_path / "objects")
    found.open()
    yield found
    found.close()


def test_a_journal_that_cannot_be_written_anew_goes_on_as_it_is(
    store: FileObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: without a journal nothing would be deleted any more, and the disk would stay full."""

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    tree, _ = message(1.0)
    with monkeypatch.context() as patch:
        patch.setattr(internals_store.os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            store.clear()
    wanted = store.preregister(RUN, tree)
    store.close()
    with again(tmp_path) as found:
        assert all(name in found for name in wanted)


def files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "objects").iterdir()} - {"boot"}


def test_objects_are_files_and_come_back_whole(store: FileObjectStore, tmp_path: Path) -> None:
    tree, objects = message(1)
    assert set(store.preregister(RUN, tree)) == set(objects)
    assert {store.get(name) for name in objects} == {b""}, "announced, not here"
    for name, content in objects.items():
        store.put(name, content)
    assert files(tmp_path) == set(objects)
    assert all(store.get(name) == content for name, content in objects.items())
    large = {name for name, content in objects.items() if len(content) > SMALL}
    assert len(large) == 2
    assert {name for name in objects if store.file(name)} == large
    assert {entry.content for name, entry in store.store.items() if name in large} == {IN_FILE}
    assert store.get_object_tree(tree.object_id) == tree
    assert store.preregister(RUN, tree) == [], "what is here is not requested again"


def test_what_is_false_or_unannounced_is_refused(store: FileObjectStore, tmp_path: Path) -> None:
    tree, objects = message(1)
    name, content = next((name, content) for name, content in objects.items() if len(content) > SMALL)
    with pytest.raises(NoObjectInStoreError):
        store.put(name, content)
    store.preregister(RUN, tree)
    with pytest.raises(ValueError, match="does not match"):
        store.put(name, content[:-1] + b"!")
    with pytest.raises(ValueError, match="not on the shelf"):
        store.put(name, IN_FILE)
    with pytest.raises(ValueError, match="does not match"):
        store.bring(name, [memoryview(content[:-1] + b"!")])
    store.blob_store.put(name, content[:-1] + b"!")
    with pytest.raises(ValueError, match="not on the shelf"):
        store.put(name, IN_FILE)
    assert store.get(name) == b""


def test_an_object_that_is_on_the_shelf_comes_by_name(store: FileObjectStore) -> None:
    tree, objects = message(1)
    store.preregister(RUN, tree)
    name, content = next((name, content) for name, content in objects.items() if len(content) > SMALL)
    store.blob_store.put(name, content)
    store.put(name, IN_FILE)
    assert store.get(name) == content


def test_an_object_is_brought_in_parts_and_not_hashed_twice(
    store: FileObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, objects = message(1)
    name, content = next((name, content) for name, content in objects.items() if len(content) > SMALL)
    parts = [memoryview(content[:100_000]), memoryview(content[100_000:])]
    assert not store.bring(name, parts), "it was not announced"
    store.preregister(RUN, tree)
    assert store.bring(name, parts)
    monkeypatch.setattr(store.blob_store, "holds", lambda name: pytest.fail("it was checked when it came"))
    store.put(name, IN_FILE)
    assert store.get(name) == content
    assert not store.bring(name, parts), "it is here"
    small = next(name for name, content in objects.items() if len(content) < SMALL)
    assert not store.bring(small, [memoryview(objects[small])])


def test_a_name_is_taken_once_for_what_was_brought(store: FileObjectStore) -> None:
    tree, objects = message(1)
    name, content = next((name, content) for name, content in objects.items() if len(content) > SMALL)
    for lose in (lambda: store.blob_store.remove(name), lambda: store.delete(tree.object_id)):
        store.preregister(RUN, tree)
        assert store.bring(name, [memoryview(content)])
        store.put(name, IN_FILE)
        lose()
        assert store.get(name) is None
        store.preregister(RUN, tree)
        with pytest.raises(ValueError, match="not on the shelf"):
            store.put(name, IN_FILE)
        store.put(name, content)
        store.delete(tree.object_id)
    store.preregister(RUN, tree)
    assert store.bring(name, [memoryview(content)])
    store.delete(tree.object_id)
    store.preregister(RUN, tree)
    with pytest.raises(ValueError, match="not on the shelf"):
        store.put(name, IN_FILE)


def test_what_is_no_piece_is_read_before_it_is_kept(store: FileObjectStore) -> None:
    for content in (b"nonsense" * 10_000, ConfigRecord({"text": "x" * 100_000}).deflate()):
        name = sha256(content).hexdigest()
        store.preregister(RUN, ObjectTree(object_id=name))
        assert not store.bring(name, [memoryview(content)])
        if content.startswith(b"nonsense"):
            with pytest.raises(UnexpectedObjectContentError):
                store.put(name, content)
            assert store.get(name) == b""
        else:
            store.put(name, content)
            assert store.get(name) == content


def test_what_was_cleared_stays_away(store: FileObjectStore, tmp_path: Path) -> None:
    tree, objects = message(1)
    for name in store.preregister(RUN, tree):
        store.put(name, objects[name])
    store.clear()
    assert files(tmp_path) == set()
    with again(tmp_path) as found:
        assert len(found) == 0


def test_a_message_that_is_done_with_takes_its_files_along(store: FileObjectStore, tmp_path: Path) -> None:
    (one, ones), (two, twos) = message(1, client=1), message(1, client=2)
    for tree, objects in ((one, ones), (two, twos)):
        for name in store.preregister(RUN, tree):
            store.put(name, objects[name])
    store.delete(one.object_id)
    assert files(tmp_path) == set(twos), "what both need stays"
    store.delete(two.object_id)
    assert files(tmp_path) == set()
    assert len(store) == 0


def test_a_run_that_is_over_takes_its_files_along(store: FileObjectStore, tmp_path: Path) -> None:
    tree, objects = message(1)
    for name in store.preregister(RUN, tree):
        store.put(name, objects[name])
    store.delete_objects_in_run(RUN)
    assert files(tmp_path) == set()
    with again(tmp_path) as found:
        assert len(found) == 0


def test_a_killed_process_finds_all_again(store: FileObjectStore, tmp_path: Path) -> None:
    (alive, objects), (gone, others) = message(1), message(2)
    for tree, contents in ((alive, objects), (gone, others)):
        store.preregister(RUN, tree)
        for name, content in contents.items():
            store.put(name, content)
    missing = next(name for name, content in objects.items() if len(content) > SMALL)
    (tmp_path / "objects" / missing).unlink()  # had not come
    (tmp_path / "objects" / f"{missing}.1.part").write_bytes(b"half")
    store.delete(gone.object_id)
    with (tmp_path / "objects.journal").open("a") as journal:
        journal.write('["tree", 7, "0a')  # it was writing
    for _ in range(2):  # the journal is written anew each time
        with again(tmp_path) as found:
            assert {name: found.get(name) for name in objects} == objects | {missing: b""}
            assert found.preregister(RUN, alive) == [missing]
            assert set(found.store) == set(objects)
        assert files(tmp_path) == set(objects) - {missing}


def test_what_comes_again_after_it_was_deleted_is_found(store: FileObjectStore, tmp_path: Path) -> None:
    tree, objects = message(1)
    for time in range(2):
        if time:
            store.delete(tree.object_id)
        store.preregister(RUN, tree)
        for name, content in objects.items():
            store.put(name, content)
    with again(tmp_path) as found:
        assert {name: found.get(name) for name in objects} == objects


def test_the_journal_is_written_anew_when_it_is_long(
    store: FileObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internals_store, "_LINES", 20)
    tree, objects = message(1)
    store.preregister(RUN, tree)
    for _ in range(60):
        other, _contents = SMALL_MESSAGE
        store.preregister(RUN, other)
        store.delete(other.object_id)
    assert len((tmp_path / "objects.journal").read_text().splitlines()) <= 22
    with again(tmp_path) as found:
        assert set(found.store) == set(objects)


def _small() -> tuple[Any, dict[str, Any]]:
    internals.identify(RUN)
    content = internals_message_objects.pack_message(
        message_format.MessageHeader(), internals_message_objects.PackedTensors(None, ())
    )
    return internals_message_objects.objects_of(Message(content, 1, "query"))


SMALL_MESSAGE = _small()


def test_a_lost_file_is_taken_anew(store: FileObjectStore, tmp_path: Path) -> None:
    tree, objects = message(1)
    for name in store.preregister(RUN, tree):
        store.put(name, objects[name])
    name = next(name for name, content in objects.items() if len(content) > SMALL)
    store.blob_store.remove(name)
    assert store.file(name) is None
    assert store.get(name) is None
    assert store.preregister(RUN, tree) == [name]
    store.put(name, objects[name])
    assert store.get(name) == objects[name]


def test_a_machine_that_went_down_begins_anew(
    store: FileObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, objects = message(1)
    for name in store.preregister(RUN, tree):
        store.put(name, objects[name])
    monkeypatch.setattr(blob_store, "_this_boot", lambda: "another")
    with again(tmp_path) as found:
        assert len(found) == 0
    assert files(tmp_path) == set()
