"""Where workers go: by processors, by measured GPU memory, or as configured."""

from __future__ import annotations

import pytest
import ray

from fedvision.engines.ray.placement import MemoryProfile, WorkerPlacement, fitting, plan
from tests.engines.hosts import adders

GIB = 2**30
SMALL = MemoryProfile(peak=2 * GIB, total=24 * GIB, seconds=0.4)


@pytest.mark.parametrize(
    ("peak", "processors", "workers"),
    [
        (2 * GIB, 32, 10),  # nine tenths of 24 GiB hold ten
        (2 * GIB, 4, 4),  # four processors feed no more
        (GIB // 4, 64, 16),  # more only take turns
        (40 * GIB, 8, 1),  # it may fail, but there must be one
    ],
)
def test_as_many_workers_as_fit_a_gpu(peak: int, processors: int, workers: int) -> None:
    assert fitting(MemoryProfile(peak=peak, total=24 * GIB, seconds=1.0), processors) == workers


def _plan(
    monkeypatch: pytest.MonkeyPatch,
    cluster: dict[str, float],
    device: str,
    workers: int = 0,
    share: float = 0.0,
) -> tuple[WorkerPlacement, list[str]]:
    notices: list[str] = []
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
    host_factory = adders(4)
    object.__setattr__(host_factory, "device", device)
    return plan(host_factory, workers, share, lambda: SMALL, notices.append), notices


def test_processors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _plan(monkeypatch, {"CPU": 8.0}, "auto")[0] == WorkerPlacement(workers=8, cpus=1.0, gpus=0.0)
    assert _plan(monkeypatch, {"CPU": 2.0, "GPU": 1.0}, "cpu")[0] == WorkerPlacement(
        workers=2, cpus=1.0, gpus=0.0
    )
    # More workers than processors share them, or Ray would never start the last ones.
    assert _plan(monkeypatch, {"CPU": 2.0}, "cpu", workers=4)[0] == WorkerPlacement(
        workers=4, cpus=0.5, gpus=0.0
    )


def test_gpus_by_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    seats, notices = _plan(monkeypatch, {"CPU": 16.0, "GPU": 2.0}, "auto")
    assert seats == WorkerPlacement(workers=16, cpus=1.0, gpus=1 / 8)
    assert notices == ["a client takes 2.0 of 24.0 GiB on a GPU and 0.40 s: 8 workers a GPU"]


def test_gpus_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"CPU": 16.0, "GPU": 2.0}
    assert _plan(monkeypatch, cluster, "cuda", share=0.25)[0] == WorkerPlacement(
        workers=8, cpus=1.0, gpus=0.25
    )
    assert _plan(monkeypatch, cluster, "cuda", share=2.0)[0] == WorkerPlacement(workers=1, cpus=1.0, gpus=2.0)
    assert _plan(monkeypatch, cluster, "cuda", workers=6)[0] == WorkerPlacement(
        workers=6, cpus=1.0, gpus=1 / 3
    )
