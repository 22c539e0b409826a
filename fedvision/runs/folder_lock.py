"""One process a folder: who writes into it holds a lock on it, which ends with the process.

The lock is the operating system's (``flock`` on the folder itself): it leaves no file, and a process that is
killed holds it no longer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedvision.errors import RunFolderError

if sys.platform != "win32":
    import fcntl


@contextmanager
def claimed(path: Path, advice: str) -> Iterator[None]:
    """Hold a folder for this process while inside; it is made where it is missing.

    Where the file system knows no locks, or the folder cannot be made, nothing is held: whoever writes into
    it then meets that error and says it.

    Args:
        path: The folder.
        advice: What a person may do beside waiting, such as ``"name another one with --out"``.

    Raises:
        RunFolderError: Another process holds it; nothing was touched.
    """
    descriptor = _hold(path, advice)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _hold(path: Path, advice: str) -> int | None:
    if sys.platform == "win32":
        return None
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunFolderError(
            f"{path}: another fedvision process is working in this folder; wait until it has ended, or "
            f"{advice}"
        ) from None
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
