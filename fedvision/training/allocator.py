"""Memory that a step frees stays with the process, instead of going back to the system and faulting in again.

glibc gives blocks above a threshold (which it moves between 128 KiB and 32 MiB) back at once, and the end of
its heap with them. Activations and gradients are such blocks: the system clears each page of the next batch
anew, up to a thousand pages a step of a small network, and a forward pass over 500 images of 28x28 took 1.7
to 2.2 times as long as one over 100. Blocks above 128 MiB still go back: they are weights of large models and
not activations, and holes of that size between them cost more memory than their faults cost time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h, for mallopt
_MMAP_BYTES, _TRIM_BYTES = 1 << 27, (1 << 31) - 1
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Set glibc to keep what is freed.

    Returns:
        Whether it was set: not where the user has set its thresholds, nor with another C library.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None or any(name in os.environ for name in _USERS_OWN):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, _TRIM_BYTES))


def give_back_freed_memory() -> None:
    """Return to the system what is freed and was kept, so that what is taken from now on can be measured."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """Return a function of the C library, None where it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
