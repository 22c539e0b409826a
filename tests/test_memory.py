"""Main memory: bytes where Linux reports them, within the control group's limit."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from fedvision import memory

pytestmark = pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="read from Linux's /proc")


def test_memory_is_in_bytes() -> None:
    free, held, highest = memory.available(), memory.resident(), memory.highest_resident()
    assert free is not None
    assert held is not None
    assert highest is not None
    assert 10**6 < free < 10**14
    assert 10**6 < held <= highest < 10**12


def test_the_peak_is_that_of_the_process_and_of_the_gpu_that_held_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = memory.peak()
    assert most == {"process": memory.highest_resident()}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: [5, 9, 7][device])
    assert memory.peak()["device"] == 9
    monkeypatch.setattr(memory, "highest_resident", lambda: None)
    assert memory.peak() == {"device": 9}


def test_what_is_allocated_is_resident() -> None:
    before = memory.resident()
    block = mmap.mmap(-1, 50_000_000)  # new memory, whatever the process has freed before
    block.write(bytes(50_000_000))
    after = memory.resident()
    assert before is not None
    assert after is not None
    assert after - before > 0.8 * len(block)


def test_a_control_group_limits_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert memory.available() == 3_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert (memory.available() or 0) > 3_000_000
