"""Standard output and standard error that no letter can break, and that do not end a run when they are lost.

A terminal's encoding may lack a letter, a name on disk may be no text at all, a log file's disk may be full,
and a terminal may be gone. What was trained must not be lost to any of them.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

from fedvision import log_format
from fedvision.errors import OutputError

_ERRORS = "fedvision.plain"
_PLAIN = {"–": "-", "─": "-", "±": "+-", "…": "...", "·": ".", "×": "x", "→": "->", "≥": ">=", "≤": "<="}
"""Signs of our own sentences and tables in ASCII."""


def prepare() -> None:
    """Make standard output and error take every letter; output to a closed one is dropped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def show(text: str, recorded: str = "") -> None:
    """Print a text on standard output, at once.

    Args:
        text: The text.
        recorded: Where it can also be found, for the error.

    Raises:
        OutputError: It cannot be written there. A reader who has closed the pipe has enough: no error.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        recording = f"; all of it is in {recorded}" if recorded else ""
        raise OutputError(
            f"standard output could not be written: {error.strerror or error}{recording}"
        ) from error


def complain(text: str, *, level: str = "info", kind: str = "note") -> None:
    """Print a text on standard error, where that can be written.

    Args:
        text: The text.
        level: As ``log_format.line`` takes it; like ``kind`` it is said where logs are JSON alone.
        kind: What the text is about.
    """
    if log_format.is_json():
        text = log_format.line(level, kind, text)
    print(text, file=Lenient.of(sys.stderr), flush=True)


class Lenient:
    """A stream whose loss is not noticed by those who write: they have more important things to do.

    Args:
        stream: The stream itself.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    def of(cls, stream: TextIO) -> TextIO:
        """Return a lenient stream, as what it is used for."""
        return cast("TextIO", cls(stream))

    def write(self, text: str) -> int:
        """Write a text, or discard it and all that follows."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # the latter of a closed file
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or discard what it holds and all that follows."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _discard(stream: TextIO) -> None:
    """Send what a stream still holds, and all that follows, to nowhere: Python flushes it when it exits."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Write letters that an encoding lacks in ASCII, and a name's bytes that are no text in hexadecimal."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter) or escaped(letter) for letter in lacking), error.end


def escaped(letter: str) -> str:
    """Return a letter or control character as Python writes it; a byte that Python could not decode as it."""
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


codecs.register_error(_ERRORS, _plain)
