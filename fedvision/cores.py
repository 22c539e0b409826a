"""Processor cores: how many this process may use, and work on one of them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available(groups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Return the cores that this process may use, >= 1.

    Its affinity and the quota of its control group decide. A quota counts in whole cores, rounded up: half a
    core is one, two and a half are three.

    Args:
        groups: Where the control groups are mounted.
        own: The file that names this process's groups.
    """
    here = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        here = len(os.sched_getaffinity(0))
    return max(1, min([here, *(math.ceil(quota) for quota in _quotas(groups, own))]))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """Yield the quotas of this process's groups and of those above them, in cores."""
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        # Within a container the root of its own group is mounted, and the path may be that of the host.
        places = [PurePosixPath(path.lstrip("/") or ".")]
        places += [*places[0].parents, PurePosixPath(".")]
        for place in dict.fromkeys(places):
            if not controllers:
                yield from _quota(_text(groups / place / "cpu.max").split())
            elif "cpu" in controllers.split(","):
                for mount in dict.fromkeys((controllers, "cpu")):
                    folder = groups / mount / place
                    fields = [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")]
                    yield from _quota([field.strip() for field in fields])


def _quota(fields: list[str]) -> Iterator[float]:
    """Yield quota / period where both are positive numbers: ``max`` and -1 are none."""
    if len(fields) == 2 and all(field.isdecimal() and int(field) > 0 for field in fields):
        yield int(fields[0]) / int(fields[1])


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread of torch's: bits and times depend on how the work is divided."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
