"""Flower's non-public names for what a SuperLink keeps of messages (flwr 1.41 and 1.42), contract-tested.

* ``InMemoryObjectStore``, its ``store``, ``lock_store``: which objects there are, and which need which.
* ``get_object_id``, ``validate_object_content``: what makes an object acceptable.
* ``LinkState._object_store``, ``ObjectStoreFactory.store_instance``: where a SuperLink looks for its store.
* ``SqlObjectStore._engine``: the connections of the store that this one replaces.

Flower keeps the bytes of every object in a row of its database. SQLite writes such a row twice, with a
checksum over every page, and waits for the disk, and a message of a ResNet-18 takes a hundred statements:
this was most of what its round cost. Here the bytes are files, and a table in memory, with a journal, says
which there are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.object_store.object_store import NoObjectInStoreError

from fedvision.deployment.transport.blob_store import IN_FILE, SMALL, BlobStore
from fedvision.deployment.transport.internals_message_objects import is_piece

_TREE, _GONE, _OVER = "tree", "gone", "over"
_LINES = 20_000
"""Lines of the journal after which it is written anew."""


class FileObjectStore(InMemoryObjectStore):
    """An object store whose contents are files, named by their digest.

    A process that is killed finds all again: the journal says what was announced and what is gone, and what
    has come is there as a file. Nothing is synced; a machine that went down begins with an empty store, since
    what it had not written is gone, and nobody waits for it any more.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(verify=False)
        self.blob_store = BlobStore(folder)
        self._path = folder.with_suffix(".journal")
        self._journal: IO[str] | None = None
        self._lines = 0
        self._brought: set[str] = set()

    def open(self) -> None:
        """Take up what an earlier process of this run of the machine left."""
        if self.blob_store.open() and self._path.exists():
            for line in self._path.read_text().splitlines():
                self._replay(line)
            for name, entry in self.store.items():
                if self.blob_store.place(name).exists():
                    entry.content, entry.is_available = IN_FILE, True
        self.blob_store.keep_only(set(self.store))
        self._rewrite()

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()
        self._journal = None

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """Note a message's objects and return those that have not come."""
        with self.lock_store:
            new: list[str] = super().preregister(run_id, object_tree)
            self._note(_TREE, run_id, object_tree.SerializeToString().hex())
            return new

    def put(self, object_id: str, object_content: bytes) -> None:
        """Keep an object that was announced; one that is on the shelf already may come as ``IN_FILE``.

        Raises:
            ValueError: The content is not the object of this digest, or is not on the shelf.
            UnexpectedObjectContentError: It is no object.
            NoObjectInStoreError: It was not announced.
        """
        if object_id not in self:
            raise NoObjectInStoreError(f"Object with ID '{object_id}' was not pre-registered.")
        if object_content == IN_FILE:
            if object_id not in self._brought and not self.blob_store.holds(object_id):
                raise ValueError(f"Object {object_id} is not on the shelf")
        else:
            if get_object_id(object_content) != object_id:
                raise ValueError(f"Object ID {object_id} does not match content hash")
            validate_object_content(content=object_content)
            self.blob_store.put(object_id, object_content)
        super().put(object_id, object_content if len(object_content) <= SMALL else IN_FILE)
        self._brought.discard(object_id)

    def bring(self, object_id: str, content: Sequence[memoryview]) -> bool:
        """Write the file of an object that was announced and has not come; ``put`` may then name it.

        Returns:
            Whether it was written; if not, nothing changed.

        Raises:
            ValueError: The content is not the object of this digest.
        """
        entry = self.store.get(object_id)
        size = sum(map(len, content))
        if entry is None or entry.is_available or size <= SMALL or not is_piece(content[0], size):
            return False
        digest = sha256()
        for part in content:
            digest.update(part)
        if digest.hexdigest() != object_id:
            raise ValueError(f"Object ID {object_id} does not match content hash")
        self.blob_store.put(object_id, *content)
        self._brought.add(object_id)
        return True

    def get(self, object_id: str) -> bytes | None:
        """Return an object's content, empty where it has not come yet, or None where there is no such object.

        One whose file is gone is taken anew from whoever sends it again.
        """
        content = super().get(object_id)
        if content != IN_FILE:
            return content
        held = self.blob_store.get(object_id)
        if held is not None:
            return bytes(held)
        with self.lock_store:
            if entry := self.store.get(object_id):
                entry.content, entry.is_available = b"", False
        return None

    def file(self, object_id: str) -> Path | None:
        """Return the file of an object that is too large to be held in memory, or None."""
        if super().get(object_id) != IN_FILE:
            return None
        path = self.blob_store.place(object_id)
        return path if path.exists() else None

    def delete(self, object_id: str) -> None:
        """Forget an object that no other one needs, and all that only it needed."""
        with self.lock_store:
            known = object_id in self.store
            super().delete(object_id)
            if known and object_id not in self.store and self._journal is not None:
                self._brought.discard(object_id)
                self.blob_store.remove(object_id)
                self._note(_GONE, object_id)

    def delete_objects_in_run(self, run_id: int) -> None:
        """Forget what only this run needed."""
        with self.lock_store:
            if run_id in self.run_objects_mapping:
                super().delete_objects_in_run(run_id)
                self._note(_OVER, run_id)

    def clear(self) -> None:
        """Forget everything."""
        with self.lock_store:
            super().clear()
            self.blob_store.keep_only(set())
            self._rewrite()

    def _note(self, *values: str | int) -> None:
        if self._journal is None:  # what is noted is being replayed
            return
        self._journal.write(json.dumps(values) + "\n")
        self._lines += 1
        if self._lines > _LINES:
            self._rewrite()

    def _replay(self, line: str) -> None:
        try:
            kind, *values = json.loads(line)
        except ValueError:  # the last line of a process that was killed while it wrote
            return
        if kind == _TREE:
            self.preregister(values[0], ObjectTree.FromString(bytes.fromhex(values[1])))
        elif kind == _GONE:
            self.delete(values[0])
        else:
            self.delete_objects_in_run(values[0])

    def _rewrite(self) -> None:
        """Write the journal anew: the messages that are there."""
        part = self._path.with_suffix(".part")
        journal = open(
            os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), "w", buffering=1
        )
        try:
            for name, entry in list(self.store.items()):
                if not entry.ref_count:
                    tree = self.get_object_tree(name).SerializeToString().hex()
                    for run_id in entry.runs:
                        journal.write(json.dumps((_TREE, run_id, tree)) + "\n")
            os.replace(part, self._path)
        except OSError:  # the old one goes on
            with suppress(OSError):
                journal.close()
            raise
        self.close()
        self._journal, self._lines = journal, 0


def keep_in_files(app: Any, state: LinkState, folder: Path) -> FileObjectStore:
    """Make a SuperLink keep its objects in files in a folder and return the store."""
    store = FileObjectStore(folder)
    store.open()
    factory = app.state.linkstate_factory.objectstore_factory
    replaced = getattr(factory.store_instance, "_engine", None)
    if replaced is not None:  # Its connection would stay open for as long as the server runs.
        replaced.dispose()
    factory.store_instance = store
    state.__dict__["_object_store"] = store
    return store
