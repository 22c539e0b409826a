"""Experiments that the owner was asked for: one file each, which says in full what was asked.

``approvals/DIGEST.pending.toml`` is the experiment as the server sent it. Approving it renames it to
``.approved.toml``, refusing it to ``.refused.toml``; whoever removes the file is asked again. The client
reads the folder whenever a task begins, so ``fedvision approve`` needs no word to a client that runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fedvision.config import ExperimentConfig
from fedvision.deployment.run_manifest import digest
from fedvision.errors import ConfigError
from fedvision.files import replace_file

FOLDER = "approvals"
Status = Literal["approved", "refused", "pending"]
_MOST = 100
"""Requests that may wait; a server cannot fill the disk with further ones."""
_SHOWN = 12
"""Digits of a digest by which people know it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """An experiment that a server asked for."""

    sha: str
    """Digest of its text, hexadecimal."""
    name: str
    """As the server calls it."""
    status: Status
    """What the owner said."""

    @property
    def text(self) -> str:
        """How people name it: the name and the first digits of the digest."""
        return f"{self.name} (sha256:{self.sha[:_SHOWN]})"


class Approvals:
    """What the owner said to experiments.

    Args:
        state: The client's ``state``.
        ask: Asks the owner a question and returns the answer; None where there is no terminal.
    """

    def __init__(self, state: Path, ask: Callable[[str], str] | None = None) -> None:
        self._folder, self._ask = state / FOLDER, ask
        self._asked: set[str] = set()

    def request(self, name: str, text: str) -> Status:
        """Return what the owner said to an experiment; the first time he is asked.

        Args:
            name: As the server calls it.
            text: Its canonical TOML.

        Raises:
            ConfigError: The request cannot be written down.
        """
        sha = digest(text)
        status = self._status(sha)
        if status is None:
            if len(self.pending()) >= _MOST:
                raise ConfigError(f"{_MOST} experiments wait for the owner's approval; no more are taken")
            self._write(sha, text)
            status = "pending"
        if status == "pending" and self._ask is not None and sha not in self._asked:
            self._asked.add(sha)
            request = Request(sha=sha, name=name, status="pending")
            threading.Thread(target=self._prompt, args=(request,), daemon=True).start()
        return status

    def all(self) -> list[Request]:
        """Return every experiment that was asked for, by name and digest."""
        found = []
        for path in self._folder.glob("*.toml") if self._folder.is_dir() else ():
            sha, _, status = path.name.removesuffix(".toml").partition(".")
            if status in get_args(Status):
                found.append(Request(sha=sha, name=_name(path), status=status))  # type: ignore[arg-type]
        return sorted(found, key=lambda request: (request.name, request.sha))

    def pending(self) -> list[Request]:
        """Return the experiments that wait for the owner."""
        return [request for request in self.all() if request.status == "pending"]

    def path(self, request: Request) -> Path:
        """Return the file that holds an experiment."""
        return self._folder / f"{request.sha}.{request.status}.toml"

    def find(self, wanted: str) -> Request:
        """Return the experiment of a name or of a digest's first digits.

        Raises:
            ConfigError: There is none, or there are several.
        """
        known, sha = self.all(), wanted.removeprefix("sha256:")
        found = [one for one in known if one.name == wanted or (len(sha) >= 6 and one.sha.startswith(sha))]
        if len(found) > 1 and (waiting := [one for one in found if one.status == "pending"]):
            found = waiting
        if not found:
            there = ", ".join(one.text for one in known) or "none"
            raise ConfigError(f"no server has asked for an experiment {wanted!r}; asked for: {there}")
        if len(found) > 1:
            raise ConfigError(
                f"several experiments are called {wanted!r}: {', '.join(one.text for one in found)}; name "
                "one by its digest"
            )
        return found[0]

    def decide(self, request: Request, status: Status) -> None:
        """Write down what the owner says to an experiment.

        Raises:
            ConfigError: It cannot be written.
        """
        path = self.path(request)
        try:
            path.rename(path.with_name(f"{request.sha}.{status}.toml"))
        except OSError as error:
            raise ConfigError(f"{path}: it cannot be renamed: {error.strerror}") from error

    def _status(self, sha: str) -> Status | None:
        found = {status for status in get_args(Status) if (self._folder / f"{sha}.{status}.toml").exists()}
        order: tuple[Status, ...] = ("refused", "approved", "pending")
        return next((status for status in order if status in found), None)

    def _write(self, sha: str, text: str) -> None:
        path = self._folder / f"{sha}.pending.toml"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(path, text, mode=0o600)
        except OSError as error:
            raise ConfigError("the request for approval could not be written down; make room") from error

    def _prompt(self, request: Request) -> None:
        assert self._ask
        question = f"Take part in the experiment {request.text}? {self.path(request)} has all of it. [y/N] "
        # The terminal is gone, or the question was answered by `fedvision approve` in the meantime.
        with suppress(EOFError, OSError, ValueError, ConfigError):
            if answer := self._ask(question):  # the end of the input is no answer
                agreed = answer.strip().lower() in ("y", "yes")
                self.decide(request, "approved" if agreed else "refused")


def _name(path: Path) -> str:
    """Return the name that an experiment's file gives it; a file of another version has none to be read."""
    try:
        return ExperimentConfig.from_toml(path.read_text(encoding="utf-8")).name
    except (OSError, ValueError, ConfigError):
        return "?"
