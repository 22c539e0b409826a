"""How many workers a machine or cluster gets: one a processor, or as many a GPU as their memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ray

from fedvision.engines.base import OnNotice
from fedvision.engines.client_host import ClientHostFactory

RESERVE = 0.9
"""Share of a GPU's memory that workers may plan with; allocators break it into pieces."""
MOST_PER_GPU = 16
"""More processes than this take turns on a GPU and gain nothing."""


@dataclass(frozen=True, kw_only=True)
class WorkerPlacement:
    """What workers there are to be."""

    workers: int
    """Number of worker processes."""
    cpus: float
    """Processors for each, as Ray counts them."""
    gpus: float
    """Share of a GPU for each."""


@dataclass(frozen=True, kw_only=True)
class MemoryProfile:
    """What training the costliest client took."""

    peak: int
    """Bytes of GPU memory, the process's context included."""
    total: int
    """Bytes of the whole GPU."""
    seconds: float
    """How long it took."""


def plan(
    host_factory: ClientHostFactory,
    workers: int,
    gpus_per_worker: float,
    profile: Callable[[], MemoryProfile],
    on_notice: OnNotice,
) -> WorkerPlacement:
    """Decide on the workers.

    Args:
        host_factory: Has the device that is wanted.
        workers: As configured; 0 for as many as fit.
        gpus_per_worker: As configured; 0 to measure.
        profile: Measures a client's training on a GPU.
        on_notice: Called with a sentence on what was measured.
    """
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    processors, devices = int(there.get("CPU", 1)), int(there.get("GPU", 0))
    if not devices or host_factory.device == "cpu":
        count = workers or max(1, processors)
        return WorkerPlacement(workers=count, cpus=min(1.0, processors / count), gpus=0.0)
    if gpus_per_worker:
        each = max(1, int(1 / gpus_per_worker + 1e-9))
    elif workers:
        each = -(-workers // devices)
    else:
        found = profile()
        each = fitting(found, max(1, processors // devices))
        on_notice(
            f"a client takes {found.peak / 2**30:.1f} of {found.total / 2**30:.1f} GiB on a GPU "
            f"and {found.seconds:.2f} s: {each} worker{'s' * (each > 1)} a GPU"
        )
    count = workers or max(1, int(devices * (each if each > 1 else 1 / max(1.0, gpus_per_worker))))
    return WorkerPlacement(workers=count, cpus=min(1.0, processors / count), gpus=gpus_per_worker or 1 / each)


def fitting(found: MemoryProfile, processors: int) -> int:
    """Return how many workers fit on a GPU that has so many processors to feed it, at least one."""
    by_memory = int(RESERVE * found.total // max(1, found.peak))
    return max(1, min(by_memory, processors, MOST_PER_GPU))
