"""Several decoder processes side by side; answers come in the order of the questions."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision import cores
from fedvision.data.decoding.bit_depth import Depth
from fedvision.data.decoding.decoder import Outcome, decode_chunk
from fedvision.errors import DataError

_CHUNK, _MOST = 16, 256
"""Files a request, at least and at most."""
_CHUNK_BYTES = 4 << 20
"""Pixels of a request that has more than ``_CHUNK`` files."""
_ROUNDS = 8
"""Requests for each process at least, where that leaves ``_CHUNK`` files in one: all wait for the last."""
_TRIAL_S = 0.25
"""Seconds of decoding in this process after which it is clear how long a file takes."""
_EACH_S = 1.5
"""Seconds of decoding for which a process is started: to start it takes 0.4 s of a processor."""
_NO_START = "a process that decodes images did not start"
_REMEDY = "data.workers = 1 decodes without further processes"

Answer = tuple[list[Outcome], NDArray[np.uint8]]


class Decision(NamedTuple):
    """What a trial has found."""

    done: int
    """Files that are decoded."""
    workers: int
    """Processes that are of use for the others."""


class PixelFormat(NamedTuple):
    """What decoding makes of a file; part of the cache's key."""

    size: int
    """Side of the square in pixels."""
    channels: int
    """1 or 3."""
    fit: str
    """One of ``pixels.FITS``."""
    white: float = 0.0
    """The value that is white; 0 goes by the file."""


def decode_all(
    root: Path, names: Sequence[str], pixel_format: PixelFormat, workers: int = 0
) -> Iterator[Answer]:
    """Decode files, a chunk at a time.

    Args:
        root: The folder that the names are relative to.
        names: The files.
        pixel_format: What to make of them.
        workers: Processes; 1 decodes in this process. 0 begins so, and then takes one per available CPU core
            as far as each saves more than its start costs.

    Yields:
        For each chunk, in order, what ``decode_chunk`` returns for it.

    Raises:
        DataError: A decoder process does not start.
    """
    done, automatic = 0, workers == 0
    if automatic:
        done, workers = yield from _trial(root, names, pixel_format)
    if workers > 1 and len(names) > _CHUNK:
        yield from _side_by_side(root, names[done:], pixel_format, workers, meanwhile=automatic)
        return
    for start in range(done, len(names), _CHUNK):
        yield decode_chunk(root, names[start : start + _CHUNK], **pixel_format._asdict())


def _trial(root: Path, names: Sequence[str], pixel_format: PixelFormat) -> Generator[Answer, None, Decision]:
    """Decode the first files in this process, until it is clear how many processes are of use for the rest.

    Returns:
        The files that are done, and the number of processes.
    """
    done, spent, each = 0, 0.0, math.inf
    while done < len(names) and spent < _TRIAL_S:
        chunk = names[done : done + _CHUNK]
        began = time.perf_counter()
        answer = decode_chunk(root, chunk, **pixel_format._asdict())
        took = time.perf_counter() - began
        # The least of all: the first files load their decoder, and any may have waited for a core.
        done, spent, each = done + len(chunk), spent + took, min(each, took / len(chunk))
        yield answer
    return Decision(done, max(1, min(cores.available(), int(each * (len(names) - done) / _EACH_S))))


def _side_by_side(
    root: Path, names: Sequence[str], pixel_format: PixelFormat, count: int, *, meanwhile: bool
) -> Iterator[Answer]:
    """Decode files in so many processes; as ``decode_all``.

    Args:
        root: The folder that the names are relative to.
        names: The files.
        pixel_format: What to make of them.
        count: Number of processes, at most one for ``_CHUNK`` files.
        meanwhile: Whether this process decodes while the others start, on a busy machine for seconds.
    """
    count, done = min(count, math.ceil(len(names) / _CHUNK)), 0
    with ExitStack() as stack:
        waiter = stack.enter_context(
            ThreadPoolExecutor(1)
        )  # left last: it waits for processes that are ended
        processes = [stack.enter_context(_Process(root, pixel_format)) for _ in range(count)]
        started = waiter.submit(_greet, processes)
        while meanwhile and done < len(names) and not started.done():
            yield decode_chunk(root, names[done : done + _CHUNK], **pixel_format._asdict())
            done += _CHUNK
        if done >= len(names):
            return
        started.result()
        size = _chunk_size(len(names) - done, pixel_format, count)
        chunks = [names[start : start + size] for start in range(done, len(names), size)]
        count = min(count, len(chunks))
        for process, chunk in zip(processes, chunks, strict=False):
            process.request(chunk)
        for number, chunk in enumerate(chunks):
            process = processes[number % count]
            answer = process.answer(chunk)
            # Called only when it waits: neither side ever blocks writing to a full pipe.
            if number + count < len(chunks):
                process.request(chunks[number + count])
            yield answer


def _greet(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.greet()


def _chunk_size(files: int, pixel_format: PixelFormat, count: int) -> int:
    """Return the files of a request: the more the better, as each waits until two processes had their turn.

    Args:
        files: Number of files.
        pixel_format: Says how large an image is.
        count: Number of processes.
    """
    image = pixel_format.size**2 * pixel_format.channels
    return max(_CHUNK, min(_MOST, _CHUNK_BYTES // image, files // (_ROUNDS * count)))


class _Process:
    """One decoder process, started again where a file made it crash."""

    def __init__(self, root: Path, pixel_format: PixelFormat) -> None:
        self._root, self._recipe = root, pixel_format
        self._popen = self._start()

    def __enter__(self) -> _Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def greet(self) -> None:
        """Wait for the sign of life; apart from the start, so that processes start side by side."""
        assert self._popen.stdout
        if self._popen.stdout.readline() != b"[]\n":
            raise DataError(f"{_NO_START}; {_REMEDY}")

    def request(self, names: Sequence[str]) -> None:
        """Send one request; ``answer`` must be called before the next one."""
        assert self._popen.stdin
        try:
            self._popen.stdin.write(json.dumps(list(names)).encode() + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            pass  # It crashed; the missing answer shows it.

    def answer(self, names: Sequence[str]) -> Answer:
        """Wait for the answer to the request for these names."""
        if (answer := self._read()) is not None:
            return answer
        status = self._popen.wait()
        self._restart()
        if len(names) == 1:
            what = f"signal {-status}" if status < 0 else f"exit status {status}"
            return [f"the decoder crashed on it ({what})"], np.empty((0, *self._shape()), np.uint8)
        # Which file it was is not known: request each alone.
        answers = []
        for name in names:
            self.request([name])
            answers.append(self.answer([name]))
        return [reasons[0] for reasons, _ in answers], np.concatenate([images for _, images in answers])

    def _read(self) -> Answer | None:
        """Read one answer; None where the process ended before it was complete."""
        assert self._popen.stdout
        line = self._popen.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        reasons = [Depth(*one) if isinstance(one, list) else one for one in json.loads(line)]
        shape = (sum(not isinstance(one, str) for one in reasons), *self._shape())
        data = self._popen.stdout.read(int(np.prod(shape)))
        return (
            (reasons, np.frombuffer(data, np.uint8).reshape(shape)) if len(data) == np.prod(shape) else None
        )

    def _shape(self) -> tuple[int, int, int]:
        return self._recipe.size, self._recipe.size, self._recipe.channels

    def _start(self) -> subprocess.Popen[bytes]:
        # The child finds the very package that runs here, however the parent found it; -P keeps a stray
        # numpy.py in the working folder out.
        home = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-P", "-m", "fedvision.data.decoding.decoder", str(self._root)]
        try:
            return subprocess.Popen(
                [*command, *map(str, self._recipe)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError as error:
            raise DataError(f"{_NO_START}: {error.strerror}; {_REMEDY}") from error

    def _restart(self) -> None:
        self._stop()
        self._popen = self._start()
        self.greet()

    def _stop(self) -> None:
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # A request that it never took was still in the buffer.
