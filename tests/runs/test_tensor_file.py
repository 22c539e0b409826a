"""Tensors written piece by piece are the safetensors package's own file, and CPU tensors are not copied."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from fedvision.errors import RunFolderError
from fedvision.runs.tensor_file import pieces, read_checked

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)


def test_the_package_reads_what_was_written() -> None:
    state = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in (*TYPES, torch.bool)}
    state |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "turned": torch.randn(3, 4).T}
    back = load(b"".join(pieces(state)))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype is tensor.dtype
        assert torch.equal(back[name], tensor)


def test_a_single_number_is_written_whatever_its_stride() -> None:
    tensor = torch.tensor(2.5).expand(1, 1)
    assert tensor.stride() == (0, 0)
    assert torch.equal(load(b"".join(pieces({"w": tensor})))["w"], tensor)


def test_floats_are_written_as_the_package_writes_them() -> None:
    state = {"b": torch.randn(3), "a": torch.tensor([torch.nan, 1.0]), "z": torch.randn(2).double()}
    assert b"".join(pieces(state)) == save(state)


def test_the_memory_itself_is_handed_out() -> None:
    tensor = torch.zeros(1000)
    header, data = pieces({"w": tensor})
    assert len(header) < 200
    assert np.frombuffer(data, np.uint8).ctypes.data == tensor.data_ptr()


def test_a_type_that_the_format_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="'w' is complex128"):
        list(pieces({"w": torch.zeros(2, dtype=torch.complex128)}))


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(
        RunFolderError, match=r"model.safetensors: it cannot be read: No such file.*; restore"
    ):
        read_checked(file, "0" * 64)
    file.write_bytes(b"no tensors")
    with pytest.raises(
        RunFolderError, match=r"its SHA-256 is [0-9a-f]{12}\.\.\., and model.json beside it has 000"
    ):
        read_checked(file, "0" * 64)
    with pytest.raises(RunFolderError, match=r"model.safetensors: it holds no tensors: .*; restore it"):
        read_checked(file, hashlib.sha256(b"no tensors").hexdigest())
