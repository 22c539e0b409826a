"""What a client is working on, in files: a process that is killed takes the same task up again.

::

    STATE/
    ├── lock                one process a client
    ├── online              is there while the process runs, and stays when it dies
    ├── node                which node of which server this client is
    ├── inbox/message       the message as it came, kept until its answer has arrived
    ├── inbox/task          the message's tensors
    ├── inbox/session       under which the reply to the message is being sent, once that has begun
    ├── inbox/KIND          the reply's tensors; KIND is ``training``, ``evaluation`` or ``other``
    ├── inbox/KIND.json     the reply's layout, and to which task it is the answer
    ├── inbox/KIND.notes    what this reply tells of the client, and to which task it is the answer
    └── runs/RUN/           what the client keeps of a run between its rounds (``run_directories``)

The last reply stays: the same task asked again, because a server was started again, is answered with it and
not done twice. Those to a training and to an evaluation have places of their own: such a server first asks
who is there, and one that was stopped while it measured goes back to the training before.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from flwr.app import MessageType

from fedvision.errors import ConfigError
from fedvision.files import replace_file

try:
    import fcntl
except ImportError:  # Windows: two processes of one client are then not noticed
    fcntl = None  # type: ignore[assignment]


class FileSource:
    """The bytes of a file, read piece by piece.

    Args:
        path: The file; it must not change while it is read.
    """

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        with path.open("rb") as file:
            held = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ) if self.size else b""
        self._held = memoryview(held)

    def views(self, start: int, stop: int) -> list[memoryview]:
        """Return the bytes from ``start`` up to ``stop``, read where they are touched."""
        return [self._held[start:stop]]


class Reply:
    """The reply to the last task of a kind.

    Args:
        path: File of its tensors; what belongs to it lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._about, self._notes = path.with_suffix(".json"), path.with_suffix(".notes")

    def layout(self, task: str) -> str | None:
        """Return the layout of the reply to a task by its digest, or None where the last one was another."""
        stored = _table(self._about)
        complete = self.path.exists() and self.path.stat().st_size == stored.get("bytes")
        return str(stored["layout"]) if complete and stored.get("task") == task else None

    def keep(self, task: str, layout: str) -> None:
        """Remember to which task the tensors, which are written, are the answer."""
        page = {"task": task, "layout": layout, "bytes": self.path.stat().st_size}
        replace_file(self._about, json.dumps(page), sync=False)

    def drop(self) -> None:
        """Forget it, before the next one is written over it."""
        self._about.unlink(missing_ok=True)

    def notes(self, task: str) -> tuple[str, ...] | None:
        """Return what the reply to a task tells of this client, None where that is not settled."""
        stored = _table(self._notes)
        return tuple(map(str, stored.get("notes", ()))) if stored.get("task") == task else None

    def keep_notes(self, task: str, notes: tuple[str, ...]) -> None:
        """Settle what the reply to a task tells: made again, it must be the same reply."""
        replace_file(self._notes, json.dumps({"task": task, "notes": notes}), sync=False)


class StateDirectory:
    """The files of one client.

    Args:
        folder: The client's ``state``; made where it is missing, for its owner's eyes only.

    Raises:
        ConfigError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._inbox = folder, folder / "inbox"
        try:
            self._inbox.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        except OSError as error:
            raise ConfigError(f"state: {folder} cannot be made: {error.strerror}") from error
        self.task = self._inbox / "task"
        self._other = Reply(self._inbox / "other")
        self._replies = {
            MessageType.TRAIN: Reply(self._inbox / "training"),
            MessageType.EVALUATE: Reply(self._inbox / "evaluation"),
        }

    def reply(self, kind: str) -> Reply:
        """Return where the reply to a message of a type is kept; those beside the rounds share a place."""
        return self._replies.get(kind, self._other)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the client's lock.

        Raises:
            ConfigError: Another process has it.
        """
        with (self._folder / "lock").open("a") as file:  # "w" would touch what another process holds
            try:
                _lock(file)
            except OSError as error:
                raise ConfigError(
                    f"state: {self._folder} is in use: this client runs already; stop the other process, "
                    "or give this one a state of its own"
                ) from error
            yield

    def node(self, address: str) -> int:
        """Return which node of a server this client was, 0 where that is not known."""
        stored = _table(self._folder / "node")
        return int(stored.get("node", 0)) if stored.get("superlink") == address else 0

    def keep_node(self, address: str, node: int) -> None:
        """Remember which node this client is."""
        page = json.dumps({"superlink": address, "node": node})
        replace_file(self._folder / "node", page, sync=False)

    def message(self) -> bytes | None:
        """Return the message that is not answered yet, or None."""
        try:
            return (self._inbox / "message").read_bytes()
        except FileNotFoundError:
            return None

    def keep_message(self, message: bytes) -> None:
        """Keep a message until it is answered."""
        replace_file(self._inbox / "message", message, sync=False)

    def answered(self) -> None:
        """Forget the message; its reply stays."""
        (self._inbox / "message").unlink(missing_ok=True)
        (self._inbox / "session").unlink(missing_ok=True)
        self.task.unlink(missing_ok=True)

    def session(self, reply: str) -> str:
        """Return under which session a reply was being sent, "" where its sending has not begun."""
        stored = _table(self._inbox / "session")
        return str(stored.get("session", "")) if stored.get("reply") == reply else ""

    def keep_session(self, reply: str, session: str) -> None:
        """Remember under which session a reply is being sent."""
        replace_file(self._inbox / "session", json.dumps({"reply": reply, "session": session}), sync=False)

    def begin(self) -> bool:
        """Note that the process runs; return whether the one before it died."""
        died = (self._folder / "online").exists()
        (self._folder / "online").touch()
        return died

    def end(self) -> None:
        """Note that the process ended as it should."""
        (self._folder / "online").unlink(missing_ok=True)


def _table(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        page = json.loads(path.read_text())
        return page if isinstance(page, dict) else {}
    return {}


def _lock(file: IO[str]) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
