"""Experiments that a server runs in turn: a folder with a file for each, whose name says how it stands.

``0003.waiting.json`` is the third that was added. The server renames it as it begins and ends; whoever adds
or removes one needs no word to a server that runs. An entry holds the experiment's whole text, checked when
it was added: what happens to its file afterwards changes nothing.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fedvision import tables
from fedvision.errors import ConfigError, RunFolderError
from fedvision.files import PART, json_page, read_json, replace_file, sync_folder
from fedvision.formatting import typed

Status = Literal["waiting", "running", "done", "failed", "stopped"]
_TEXT = "{number:04d}.toml"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP)
"""What file systems without hard links answer, such as exFAT: there the name is taken first."""


@dataclass(frozen=True, kw_only=True)
class QueueEntry:
    """An experiment in a queue."""

    name: str
    """The experiment's name."""
    experiment: str
    """Its canonical TOML."""
    folder: str
    """The folder in which it was added: relative paths in it are seen from there."""
    modules: str
    """The folder of the experiment's file, where its plug-ins are."""
    out: str
    """Its run folder; empty for the first of ``runs/NAME``, ``runs/NAME-2``, ... that is free."""
    wait_for: int = 1
    """Clients to begin with."""
    number: int = 0
    """Its place in the queue."""
    status: Status = "waiting"
    """How it stands."""


class ExperimentQueue:
    """A folder of experiments.

    Args:
        folder: Made where it is missing when something is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[QueueEntry]:
        """Return the experiments in their order.

        Raises:
            RunFolderError: A file is damaged, or a file is in the folder's place.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RunFolderError(f"{self.folder}: this is no folder; name the queue's")
        while True:
            # An entry that is marked or removed while it is read has another name, or none.
            with suppress(FileNotFoundError):
                return self._listed()

    def _listed(self) -> list[QueueEntry]:
        """Return the experiments of one look at the folder.

        Raises:
            FileNotFoundError: One of them was marked or removed in the meantime.
        """
        found = []
        for path in sorted(self.folder.glob("*.*.json")) if self.folder.is_dir() else ():
            number, _, status = path.name.removesuffix(".json").partition(".")
            if number.isdecimal() and status in get_args(Status):
                found.append(_read(path, int(number), status))
        return sorted(found, key=lambda entry: entry.number)

    def add(self, entry: QueueEntry) -> QueueEntry:
        """Put an experiment at the end and return it with its number, and a run folder if it has none.

        Raises:
            ConfigError: The folder cannot be written, or an experiment that is to run has the run folder.
        """
        there = self.entries()
        if not entry.out:
            out = free_folder(self, entry.name, Path(entry.folder) / "runs")
            entry = replace(entry, out=str(out))
        for other in there:
            if other.out == entry.out and other.status in ("waiting", "running"):
                raise ConfigError(
                    f"{entry.out}: experiment {other.number} of the queue is to run in this folder; name "
                    "another one with --out"
                )
        entry = replace(entry, number=max((one.number for one in there), default=0) + 1, status="waiting")
        page: dict[str, Any] = asdict(entry)
        del page["number"], page["status"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._put(self._path(entry), json_page(page))
        except FileExistsError as error:
            raise ConfigError(
                f"{self.folder}: somebody else adds an experiment right now; try again"
            ) from error
        except OSError as error:
            raise ConfigError(f"{self.folder}: it cannot be written: {error.strerror}") from error
        return entry

    def remove(self, number: int) -> QueueEntry:
        """Take an experiment out; its run folder stays.

        Raises:
            ConfigError: There is none of this number, or it is running.
        """
        for entry in self.entries():
            if entry.number == number:
                if entry.status == "running":
                    raise ConfigError(
                        f"experiment {number} is running; `fedvision stop {typed(entry.out)}` ends it, then "
                        "it can be removed"
                    )
                self._path(entry).unlink(missing_ok=True)
                self.text(entry).unlink(missing_ok=True)
                return entry
        raise ConfigError(f"{self.folder}: there is no experiment {number} in the queue")

    def next(self) -> QueueEntry | None:
        """Return the first experiment that waits, or that a server that was killed had begun."""
        return next((one for one in self.entries() if one.status in ("waiting", "running")), None)

    def mark(self, entry: QueueEntry, status: Status) -> QueueEntry | None:
        """Write down how an experiment stands; None where it was removed in the meantime."""
        changed = replace(entry, status=status)
        try:
            self._path(entry).rename(self._path(changed))
        except FileNotFoundError:
            return None
        return changed

    @contextmanager
    def begun(self, entry: QueueEntry) -> Iterator[Path]:
        """Write the experiment's text for the process that runs it, and remove it in the end."""
        path = self.text(entry)
        replace_file(path, entry.experiment)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def text(self, entry: QueueEntry) -> Path:
        """Return the file of an experiment's text while it runs."""
        return self.folder / _TEXT.format(number=entry.number)

    @staticmethod
    def _put(path: Path, text: str) -> None:
        """Write a new file at one instant: a server never sees it empty, and a full disk leaves none.

        Raises:
            FileExistsError: Of two who add at the same moment this is the second.
            OSError: The disk is full or refuses.
        """
        own = path.with_name(f"{path.name}.{os.getpid()}{PART}")
        try:
            replace_file(own, text)
            try:
                os.link(own, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                path.open("x").close()
                os.replace(own, path)
        finally:
            own.unlink(missing_ok=True)
        sync_folder(path.parent)

    def _path(self, entry: QueueEntry) -> Path:
        return self.folder / f"{entry.number:04d}.{entry.status}.json"


def _read(path: Path, number: int, status: str) -> QueueEntry:
    try:
        return tables.build(QueueEntry, {**read_json(path), "number": number, "status": status})
    except (ConfigError, RunFolderError) as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise RunFolderError(
            f"{path}: this is no experiment of a queue; remove the file, and add the experiment again"
        ) from error


def free_folder(queue: ExperimentQueue, name: str, runs: Path) -> Path:
    """Return the first of ``runs/NAME``, ``runs/NAME-2``, ... that is not there and that no entry has."""
    taken = {entry.out for entry in queue.entries()}
    path, number = runs / name, 2
    while path.exists() or str(path) in taken:
        path, number = runs / f"{name}-{number}", number + 1
    return path


def as_json(entry: QueueEntry) -> str:
    """Return an entry for programs, without its text."""
    page = asdict(entry)
    del page["experiment"]
    return json.dumps(page)
