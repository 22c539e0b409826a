"""How much main memory this machine still has for this process, and how much the process holds.

Both are read from Linux; elsewhere they are unknown, and whoever asks goes on without them.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")
"""Where a container sees its own control group (version 2)."""


def available() -> int | None:
    """Return bytes of main memory that may still be taken, within this process's control group."""
    known = [_proc("meminfo", "MemAvailable")]
    with suppress(OSError, ValueError):
        most = (_GROUP / "memory.max").read_text().strip()
        known.append(int(most) - int((_GROUP / "memory.current").read_text()))
    return min((size for size in known if size is not None), default=None)


def resident() -> int | None:
    """Return bytes of main memory that this process holds."""
    return _proc("self/status", "VmRSS")


def highest_resident() -> int | None:
    """Return the most bytes of main memory that this process has held."""
    return _proc("self/status", "VmHWM")


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that memory cannot be had: Python's, NumPy's or torch's."""
    # torch raises a plain RuntimeError for main memory, and an error of its own for a GPU's.
    texts = ("can't allocate memory", "not enough memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))
    )


def peak() -> dict[str, int]:
    """Return the most bytes that this process has held of each memory; what is unknown is left out.

    Returns:
        ``process``, main memory, which counts what it shares with other processes; and ``device``, what torch
        allocated on the GPU where it allocated most.
    """
    most = {"process": highest_resident() or 0}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        most["device"] = max((torch.cuda.max_memory_allocated(device) for device in devices), default=0)
    return {name: size for name, size in most.items() if size}


def _proc(file: str, name: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc", file).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
