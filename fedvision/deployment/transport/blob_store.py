"""A folder of objects by digest, which a SuperLink and the server beside it share.

What both processes see as a file need not travel between them: 45 MB through HTTP and TLS took half a second
of the processor's time each way. Files are complete when their name appears; they are not synced.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import threading
from contextlib import suppress
from pathlib import Path

SMALL = 1 << 16
"""Bytes up to which an object is not worth a file."""
IN_FILE = b"in a file"
"""Stands for the content; no object's content is this, since every one begins with its kind and length."""
_BOOT = "boot"
_THIS_BOOT = Path("/proc/sys/kernel/random/boot_id")
_DIGEST = re.compile("[0-9a-f]{64}")


class BlobStore:
    """The files of one SuperLink, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def is_open(self) -> bool:
        """Whether a SuperLink uses the folder."""
        return (self._folder / _BOOT).exists()

    def open(self) -> bool:
        """Make the folder and return whether its files can be relied on.

        A machine that went down may have lost what it had not written: after that nothing can be relied on.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        noted, boot = self._folder / _BOOT, _this_boot()
        same = bool(boot) and noted.exists() and noted.read_text() == boot
        noted.write_text(boot)
        return same

    def close(self) -> None:
        """Note that no SuperLink uses the folder any more; its content is left."""
        (self._folder / _BOOT).unlink(missing_ok=True)

    def keep_only(self, names: set[str]) -> None:
        """Remove all other files."""
        for path in self._folder.iterdir():
            if path.name not in names and path.name != _BOOT:
                path.unlink(missing_ok=True)

    def place(self, name: str) -> Path:
        """Return the path of an object's file.

        Raises:
            ValueError: The name is no digest.
        """
        if not _DIGEST.fullmatch(name):
            raise ValueError(f"{name!r} is no digest of an object")
        return self._folder / name

    def put(self, name: str, *content: bytes | memoryview) -> None:
        """Write an object.

        Raises:
            OSError: The disk is full or refuses; nothing of the name is there.
        """
        path = self.place(name)
        # Both processes may put the same object, and two threads of one: clients send the same zeros.
        part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.writelines(content)
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def get(self, name: str) -> memoryview | None:
        """Return an object's bytes, read where they are touched, or None where it is not here."""
        with suppress(FileNotFoundError, ValueError), self.place(name).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return None

    def holds(self, name: str) -> bool:
        """Return whether an object is here and is what its name says."""
        with suppress(FileNotFoundError, ValueError), self.place(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == name
        return False

    def remove(self, name: str) -> None:
        """Remove an object, if it is here."""
        self.place(name).unlink(missing_ok=True)


def _this_boot() -> str:
    """Return what names this run of the machine, or nothing where the system does not report it."""
    with suppress(OSError):
        return _THIS_BOOT.read_text().strip()
    return ""
