"""Every error that fedvision raises on purpose, as one tree.

::

    FedVisionError
    ├── ConfigError            what the user wrote is wrong; nothing was started or written   (exit code 2)
    │   ├── PluginError        a ``use = "..."`` that cannot be found, or arguments it does not take
    │   ├── DataError          images, labels or their folder are missing, unreadable or too few
    │   └── RunFolderError     a run folder that cannot be written or belongs to another experiment
    ├── ClientError            one client failed; carries node, stage and cause
    │   └── InvalidUpdate      one client's reply cannot be used; the round goes on without it
    ├── ProtocolError          a message that arrived is not what was announced or expected
    └── RunError               the run itself failed                                         (exit code 1)
        ├── RoundAborted       what a round had gathered is gone; the round can be played again
        ├── TooFewUpdates      a strategy cannot combine so few; the round leaves the model as it is
        ├── RunExpired         the run's server sent no heartbeat for too long; it can go on
        ├── RecordError        the run folder could not be written any more (full disk, ...)
        ├── OutputError        standard output could not be written; what was recorded is intact
        └── ServerError        the server cannot be reached, is not who it should be, or refuses this client

A message is one sentence or two: what is wrong, where (file, table, key, node, stage) and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What reading a message or file of another's hand raises where it is not of the expected form.

A key is missing, a number is infinite or has 400 digits, a list lies in 100,000 others.
"""


class FedVisionError(Exception):
    """Root of all errors that fedvision raises on purpose."""


class ConfigError(FedVisionError):
    """Something a person wrote (a file, a key, an option) is wrong; raised before anything is started."""


class PluginError(ConfigError):
    """A plug-in's name is unknown, its module cannot be imported, or its arguments do not fit."""


class DataError(ConfigError):
    """Images, labels or the folder that holds them are missing, unreadable or too few."""


class RunFolderError(ConfigError):
    """A run folder cannot be created, or belongs to another experiment."""


class ClientError(FedVisionError):
    """One client failed.

    Args:
        client: The client's partition number (simulation) or name (deployment).
        stage: What it was doing: ``"data"``, ``"training"``, ``"evaluation"``.
        cause: The reason in one sentence.
    """

    def __init__(self, client: int | str, stage: str, cause: str) -> None:
        self.client, self.stage, self.cause = client, stage, cause
        super().__init__(f"client {client}, {stage}: {cause}")


class InvalidUpdate(ClientError):
    """A client's reply cannot be used (NaN, wrong shape, missing tensor, no examples)."""


class ProtocolError(FedVisionError):
    """A message that arrived does not fit; it was set aside before memory was taken for it."""


class RunError(FedVisionError):
    """The run failed after it had started."""


class RoundAborted(RunError):
    """What a round had gathered is gone with the process that held it; nothing else has changed."""


class TooFewUpdates(RunError):
    """A strategy cannot combine as few updates as came; the round counts as failed."""


class RunExpired(RunError):
    """A SuperLink gave a run up, as its server was stopped or asleep; it goes on from its last round."""


class RecordError(RunError):
    """The run folder can no longer be written; the last checkpoint is intact."""


class OutputError(RunError):
    """Standard output cannot be written (full disk, lost mount); nothing of a run is lost."""


class ServerError(RunError):
    """The server cannot be reached, is not who it should be, or refuses this client."""


LONGEST = 300
"""Characters of another's sentence that are repeated; torch adds pages of its own stack."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, cut at ``LONGEST``; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip()[:LONGEST] if lines else type(error).__name__


@contextmanager
def plugin_errors(where: str) -> Iterator[None]:
    """Turn what a plug-in raises before a run, ``sys.exit()`` included, into one sentence.

    Args:
        where: Whose method it is, such as ``"[strategy] use = 'mine:Rule': its check"``.

    Raises:
        PluginError: Whatever was raised; errors of this package and Ctrl-C pass as they are.
    """
    try:
        yield
    except FedVisionError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{where} failed: {with_kind(error)}") from error


def with_kind(error: BaseException) -> str:
    """Return an error's class and, where it says something, the first line of that."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error).strip() else kind


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known word, else the list of known ones."""
    options = sorted(known)
    return closest(name, options) or (f"; known: {', '.join(options)}" if options else "")


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known word, or nothing where none is close."""
    import difflib  # where something is misspelt, and only there

    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
