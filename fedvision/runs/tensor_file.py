"""Tensors as the pieces of a safetensors file, so that a large model is written where it lies.

The format: the header's length (8 bytes, little-endian), the header (JSON, filled up with spaces to a
multiple of 8 bytes), then the tensors one after the other, the widest types first so that all are aligned.
Reading is left to the safetensors package.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvision.errors import RunFolderError

if TYPE_CHECKING:
    import torch

    from fedvision.types import State

_NAMES = {
    "float64": "F64",
    "int64": "I64",
    "complex64": "C64",
    "float32": "F32",
    "int32": "I32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int16": "I16",
    "uint8": "U8",
    "int8": "I8",
    "bool": "BOOL",
}


def pieces(state: State, metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file: the same for the same tensors, NaN payloads included.

    A piece is good until the next one is taken; a tensor on the CPU is not copied. Tensors that share memory
    (tied weights) are written twice: the format knows no sharing.

    Args:
        state: The tensors.
        metadata: Texts by name for the file's header.

    Raises:
        ValueError: The format has no such type.
    """
    import torch

    names = sorted(state, key=lambda name: (-state[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = state[name]
        start, end = end, end + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {
            "dtype": _type(name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        # Strided anew: of a single number the stride may be anything, and a view as bytes wants 1.
        whole = state[name].detach().cpu().contiguous()
        flat = whole.as_strided((whole.numel(),), (1,))
        if flat.numel():
            yield memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def read_checked(file: Path, sha256: str) -> State:
    """Return the tensors of a run's file with this digest, as the model.json beside it has it.

    Raises:
        RunFolderError: It is missing, cannot be read, or has another digest.
    """
    import safetensors
    from safetensors.torch import load_file

    try:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != sha256:
            raise RunFolderError(
                f"{file}: its SHA-256 is {found[:12]}..., and model.json beside it has {sha256[:12]}...: "
                "the file was changed or copied in part; restore it, or write both again with --resume"
            )
        return load_file(file)
    except OSError as error:
        raise RunFolderError(f"{file}: it cannot be read: {error.strerror or error}; restore it") from error
    except safetensors.SafetensorError as error:
        raise RunFolderError(f"{file}: it holds no tensors: {error}; restore it") from error


def hashed(
    parts: Iterable[bytes | memoryview], update: Callable[[bytes | memoryview], object]
) -> Iterator[bytes | memoryview]:
    """Pass the pieces of a file on, each of them shown to a digest's ``update``."""
    for part in parts:
        update(part)
        yield part


def _type(name: str, tensor: torch.Tensor) -> str:
    spelled = str(tensor.dtype).removeprefix("torch.")
    if spelled not in _NAMES:
        raise ValueError(f"the tensor {name!r} is {spelled}, which a safetensors file does not hold")
    return _NAMES[spelled]
