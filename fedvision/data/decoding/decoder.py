"""The process that decodes: ``python -m fedvision.data.decoding.decoder ROOT SIZE CHANNELS FIT WHITE``.

Its protocol, over pipes: a request is one line, a JSON list of file names below ROOT. The reply is one line,
a JSON list with null, the ``Depth`` (a list), or the reason why the file cannot be read (text) for each name,
and then the pixels of the files that can: uint8 [n, size, size, channels], C order. An empty JSON list comes
first of all, as a sign of life.

A process of its own, not one of ``multiprocessing``: that would run the user's script again in every child
unless it is guarded, and may not be used inside a daemonic worker at all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from fedvision.data.decoding import pixels
from fedvision.data.decoding.bit_depth import Depth

Outcome: TypeAlias = "Depth | str | list[Any] | None"
"""What became of a file: read, read with more than 8 bits a channel, or a note that JSON can hold; of an
image that is why it cannot be read."""


def decode_chunk(
    root: Path, names: Sequence[str], *, size: int, channels: int, fit: str, white: float = 0.0
) -> tuple[list[Outcome], NDArray[np.uint8]]:
    """Decode some files.

    Args:
        root: The folder that the names are relative to.
        names: The files.
        size: Side of the square in pixels.
        channels: 1 or 3.
        fit: One of ``pixels.FITS``.
        white: The value that is white; 0 goes by the file.

    Returns:
        What became of each file, and the readable files' pixels
        uint8 [n, size, size, channels] in the order of the names.
    """
    outcomes: list[Outcome] = []
    images = np.empty((len(names), size, size, channels), np.uint8)
    count = 0
    with warnings.catch_warnings():
        # What Pillow warns of (odd metadata, large images) it has read nevertheless.
        warnings.simplefilter("ignore")
        for name in names:
            try:
                found = pixels.read(root / name, size=size, channels=channels, fit=fit, white=white)
                images[count] = found.pixels
            except Exception as error:  # A broken file can raise almost anything in almost any decoder.
                outcomes.append(_reason(error))
            else:
                outcomes.append(found.depth)
                count += 1
    return outcomes, images[:count]


def serve(requests: BinaryIO, replies: BinaryIO, root: Path, pixel_format: Mapping[str, Any]) -> None:
    """Answer requests until they end; the protocol is described at the top.

    Args:
        requests: Lines.
        replies: Lines and pixels.
        root: The folder that names are relative to.
        pixel_format: Keyword arguments of ``decode_chunk``.
    """
    replies.write(b"[]\n")
    replies.flush()
    for line in requests:
        outcomes, images = decode_chunk(root, json.loads(line), **pixel_format)
        replies.write(json.dumps(outcomes).encode() + b"\n")
        replies.write(images.tobytes())
        replies.flush()


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, without its path: the sentence around it names the file."""
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _main(root: str, size: str, channels: str, fit: str, white: str) -> None:
    # Ctrl-C reaches the whole group: the parent ends this process by closing its pipes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Decoders in C write warnings without a file name past Python; the imports above have succeeded by now.
    with open(os.devnull, "wb") as silence:
        os.dup2(silence.fileno(), 2)
    try:
        pixel_format = {"size": int(size), "channels": int(channels), "fit": fit, "white": float(white)}
        serve(sys.stdin.buffer, sys.stdout.buffer, Path(root), pixel_format)
    except BrokenPipeError:
        # The parent is gone; nothing may be flushed to it at exit either.
        os._exit(1)


if __name__ == "__main__":
    _main(*sys.argv[1:])
