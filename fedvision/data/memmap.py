"""Memory-mapped arrays that travel to other processes by name: the file is opened again, not copied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import DataError


@dataclass(frozen=True)
class MemmapArray:
    """Where the bytes of an array lie in a file."""

    path: str
    offset: int
    """Of the first element, in bytes."""
    shape: tuple[int, ...]
    dtype: str

    def open(self) -> NDArray[Any]:
        """Map the file, read-only.

        Raises:
            DataError: It is not there, or too short, on this machine.
        """
        try:
            return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path} cannot be mapped ({error}); all machines of a cluster must see the data set "
                "and the cache at the same paths"
            ) from error


def reference(array: NDArray[Any]) -> MemmapArray | None:
    """Return where an array's bytes lie; None where it is in memory or skips parts of its file."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    # A view's own `offset` is that of the map it was cut from.
    whole = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    start = whole.offset + array.ctypes.data - whole.ctypes.data
    return MemmapArray(str(Path(array.filename).resolve()), start, array.shape, array.dtype.str)
