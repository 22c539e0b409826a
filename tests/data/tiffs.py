"""A TIFF of one strip, written byte by byte: Pillow writes few of the kinds that it reads."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BITS, PHOTOMETRIC, MAX_SAMPLE, FORMAT, S_MAX_SAMPLE = 258, 262, 281, 339, 341


def write_tiff(
    path: Path, data: bytes, width: int, height: int, tags: dict[int, tuple[int, ...]], order: str = "<"
) -> Path:
    """Write pixels as they are, with short tags; the given ones come over 8 bits gray, black is zero."""
    shorts = {
        256: (width,),
        257: (height,),
        BITS: (8,),
        259: (1,),
        PHOTOMETRIC: (1,),
        277: (1,),
        278: (height,),
    }
    shorts |= tags
    entries, extra = [], b""
    start = 8 + 2 + 12 * (len(shorts) + 2) + 4
    for tag, values in sorted({**shorts, 273: (), 279: ()}.items()):
        if tag in (273, 279):
            entries.append((tag, 4, 1, None))
        elif len(values) > 2:
            entries.append((tag, 3, len(values), struct.pack(f"{order}I", start + len(extra))))
            extra += struct.pack(f"{order}{len(values)}H", *values)
        else:
            packed = struct.pack(f"{order}{len(values)}H", *values).ljust(4, b"\0")
            entries.append((tag, 3, len(values), packed))
    where = {273: struct.pack(f"{order}I", start + len(extra)), 279: struct.pack(f"{order}I", len(data))}
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        table += struct.pack(f"{order}HHI", tag, kind, count) + (where[tag] if value is None else value)
    path.write_bytes(head + table + b"\0\0\0\0" + extra + data)
    return path


def tiff_of(
    path: Path, values: NDArray[np.generic], tags: dict[int, tuple[int, ...]], order: str = "<"
) -> Path:
    """Write an array [H, W] or [H, W, channels] in the byte order given."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    bits = {BITS: (8 * values.itemsize,) * channels, 277: (channels,)}
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    return write_tiff(path, data, width, height, bits | tags, order)
