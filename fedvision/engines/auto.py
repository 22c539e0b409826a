"""The engine that looks at the run and the machine, picks another one, and notes which and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from flwr.serverapp import Grid

from fedvision import cores, registry
from fedvision.engines.base import Engine, OnNotice
from fedvision.engines.client_host import ClientHostFactory, CostEstimate
from fedvision.ranges import check_range
from fedvision.stages import stage
from fedvision.types import PluginSpec

START = 4.0
"""Seconds that worker processes take to start, beside what one process takes."""


class AutoEngine:
    """Picks an engine when it is opened.

    Args:
        workers: Number of worker processes where several are of use; 0 for one a processor.

    Raises:
        ValueError: ``workers`` is below 0.
    """

    def __init__(self, *, workers: int = 0) -> None:
        check_range(at_least=0, workers=workers)
        self._workers = workers

    @contextmanager
    def open(
        self, host_factory: ClientHostFactory, *, run_id: int = 1, on_notice: OnNotice = print
    ) -> Iterator[Grid]:
        """Open a Grid of the engine that is expected to be fastest."""
        gpus = _gpus(host_factory.device)
        if gpus:
            spec, why = choose_on_gpus(gpus)
        else:
            stage("timing a few training steps")
            spec, why = choose(host_factory.estimate_cost(), self._workers or cores.available())
        on_notice(f"engine {spec.use}: {why}")
        engine: Engine = registry.build("engine", spec)
        with engine.open(host_factory, run_id=run_id, on_notice=on_notice) as grid:
            yield grid


def _gpus(device: str) -> int:
    """Return how many GPUs an experiment's device means on this machine."""
    if device == "auto":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(torch.device(device).type == "cuda")


def choose_on_gpus(gpus: int) -> tuple[PluginSpec, str]:
    """Return an engine for so many GPUs and the reason in a few words."""
    if gpus == 1:
        return PluginSpec(use="vectorized"), "one GPU, which small clients one by one would leave idle"
    args = {"workers": gpus, "gpus_per_worker": 1.0, "inner": "vectorized"}
    return PluginSpec(use="ray", args=args), f"a vectorized worker on each of {gpus} GPUs"


def choose(estimate_cost: CostEstimate, workers: int) -> tuple[PluginSpec, str]:
    """Return an engine for a processor and the reason in a few words.

    Args:
        estimate_cost: What is ahead.
        workers: Processes that the machine can feed.
    """
    useful = min(workers, estimate_cost.cohort)
    seconds = START + estimate_cost.seconds / max(1, useful)
    alone = f"about {estimate_cost.seconds:.0f} s of training in one process"
    if useful > 1 and seconds < estimate_cost.seconds:
        return PluginSpec(use="ray", args={"workers": useful}), f"{alone}, {seconds:.0f} s in {useful}"
    return PluginSpec(use="serial"), f"{alone}; more would not be faster"
