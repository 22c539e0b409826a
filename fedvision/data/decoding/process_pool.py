"""Several decoder processes side by side; answers come in the order of the questions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
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

_CHUNK = 16
"""Files a request: 16 images of 224 x 224 x 3 are 2.4 MB."""
_FILES_PER_PROCESS = 128
"""Starting a process costs 0.2 s, as much as decoding about this many photographs of 500 x 375."""
_NO_START = "a process that decodes images did not start"
_REMEDY = "data.workers = 1 decodes without further processes"

Answer = tuple[list[Outcome], NDArray[np.uint8]]


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
        workers: Processes; 0 takes one per available CPU core, but none where files are few. 1 decodes in
            this process.

    Yields:
        For each chunk, in order, what ``decode_chunk`` returns for it.

    Raises:
        DataError: A decoder process does not start.
    """
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    wanted = workers or min(cores.available(), len(names) // _FILES_PER_PROCESS)
    count = min(wanted, len(chunks))
    if count <= 1:
        for chunk in chunks:
            yield decode_chunk(root, chunk, **pixel_format._asdict())
        return
    with ExitStack() as stack:
        processes = [stack.enter_context(_Process(root, pixel_format)) for _ in range(count)]
        for process, chunk in zip(processes, chunks, strict=False):
            process.greet()
            process.request(chunk)
        for number, chunk in enumerate(chunks):
            process = processes[number % count]
            answer = process.answer(chunk)
            # Asked only when it waits: neither side ever blocks writing to a full pipe.
            if number + count < len(chunks):
                process.request(chunks[number + count])
            yield answer


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
            pass  # It crashed; the missing answer tells.

    def answer(self, names: Sequence[str]) -> Answer:
        """Wait for the answer to the request for these names."""
        if (answer := self._read()) is not None:
            return answer
        status = self._popen.wait()
        self._restart()
        if len(names) == 1:
            what = f"signal {-status}" if status < 0 else f"exit status {status}"
            return [f"the decoder crashed on it ({what})"], np.empty((0, *self._shape()), np.uint8)
        # Which file it was is not known: ask for each alone.
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
