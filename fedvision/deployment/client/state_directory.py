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
    ├── inbox/KIND.notes    this reply's notes on the client, and to which task it is the answer
    ├── runs/RUN/constants/ the objects that stay the same in a run, by their digests
    └── runs/RUN/           what the client keeps of a run between its rounds (``run_directories``)

The last reply stays: the same task sent again, because a server was started again, is answered with it and
not done twice. Those to a training and to an evaluation have places of their own: such a server first asks
who is there, and one that was stopped while it measured goes back to the training before.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
        size = self.path.stat().st_size if self.path.exists() else None
        return _read(self._about, task=task, bytes=size).get("layout")

    def keep(self, task: str, layout: str) -> None:
        """Remember to which task the tensors, which are written, are the answer."""
        _write(self._about, task=task, layout=layout, bytes=self.path.stat().st_size)

    def drop(self) -> None:
        """Forget it, before the next one is written over it."""
        self._about.unlink(missing_ok=True)

    def notes(self, task: str) -> tuple[str, ...] | None:
        """Return the notes on this client in the reply to a task, None where they are not settled."""
        stored = _read(self._notes, task=task)
        return tuple(map(str, stored.get("notes", ()))) if stored else None

    def keep_notes(self, task: str, notes: tuple[str, ...]) -> None:
        """Settle the notes of the reply to a task: made again, it must be the same reply."""
        _write(self._notes, task=task, notes=notes)


class KeptObjects:
    """Objects that a run sends once, such as the weights of a teacher.

    Args:
        folder: Where they are; made when there is one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> memoryview | None:
        """Return an object by its digest, None where it is not here or its bytes were changed."""
        with suppress(OSError):
            content = (self._folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() == name:
                return memoryview(content)
        return None

    def put(self, name: str, content: memoryview) -> None:
        """Keep an object; where the disk is full it is fetched again."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._folder / name, [content], mode=0o600, sync=False)


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

    def constants(self, run: str) -> KeptObjects:
        """Return where the objects are kept that stay the same in a run."""
        return KeptObjects(self._folder / "runs" / run / "constants")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the client's lock.

        Raises:
            ConfigError: Another process has it.
        """
        with (self._folder / "lock").open("a") as file:  # "w" would touch what another process holds
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    f"state: {self._folder} is in use: this client runs already; stop the other process, "
                    "or give this one a state of its own"
                ) from error
            yield

    def node(self, address: str) -> int:
        """Return which node of a server this client was, 0 where that is not known."""
        return int(_read(self._folder / "node", superlink=address).get("node", 0))

    def keep_node(self, address: str, node: int) -> None:
        """Remember which node this client is."""
        _write(self._folder / "node", superlink=address, node=node)

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
        return str(_read(self._inbox / "session", reply=reply).get("session", ""))

    def keep_session(self, reply: str, session: str) -> None:
        """Remember under which session a reply is being sent."""
        _write(self._inbox / "session", reply=reply, session=session)

    def begin(self) -> bool:
        """Note that the process runs; return whether the one before it died."""
        died = (self._folder / "online").exists()
        (self._folder / "online").touch()
        return died

    def end(self) -> None:
        """Note that the process ended as it should."""
        (self._folder / "online").unlink(missing_ok=True)


def _write(path: Path, **page: Any) -> None:
    replace_file(path, json.dumps(page), sync=False)


def _read(path: Path, **about: Any) -> dict[str, Any]:
    """Return what was kept, empty where it is damaged or about something else."""
    with suppress(OSError, ValueError):
        page = json.loads(path.read_text())
        if isinstance(page, dict) and all(page.get(key) == value for key, value in about.items()):
            return page
    return {}
