"""Arrays in an .npz file: memory-mapped where they are stored uncompressed, else loaded; never pickles."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import DataError

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""A member's own header in a ZIP file: signature, 22 bytes, length of the name, length of the extra field."""


class Archive:
    """The arrays of one .npz file by name.

    Args:
        path: The file.

    Raises:
        DataError: It is missing or no .npz file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                self._members = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
        except OSError as error:
            raise DataError(
                f"{path}: this file cannot be read: {error.strerror}; correct data.path"
            ) from error
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{path}: this is no .npz file ({error}); save it again with numpy.savez"
            ) from error

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays, in the file's order."""
        return tuple(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str) -> NDArray[Any]:
        """Return one array; read-only where it is a memory map.

        Raises:
            DataError: It is missing, damaged, or of Python objects.
        """
        if name not in self:
            known = ", ".join(self.names) or "nothing"
            raise DataError(f"{self.path}: there is no array {name!r}; it holds {known}")
        info = self._members[name]
        try:
            if info.compress_type == zipfile.ZIP_STORED:
                return self._map(info)
            with np.load(self.path, allow_pickle=False) as file:
                return np.asarray(file[name])
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, struct.error) as error:
            raise DataError(f"{self.path}: the array {name!r} cannot be read: {error}") from error

    def _map(self, info: zipfile.ZipInfo) -> NDArray[Any]:
        """Map the bytes of a stored member, where they lie in the archive."""
        with open(self.path, "rb") as file:
            file.seek(info.header_offset)
            signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if signature != b"PK\x03\x04":
                raise zipfile.BadZipFile("its header is damaged")
            file.seek(name + extra, 1)
            shape, fortran, dtype = _header(file)
            if dtype.hasobject:
                raise ValueError("it holds Python objects")
            if 0 in shape:
                return np.empty(shape, dtype)
            order = "F" if fortran else "C"
            return np.memmap(self.path, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload,no-any-return]


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version} of its format is not known")
    return read[version](file)
