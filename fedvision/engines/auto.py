"""The engine that looks at the run and the machine, picks another one, and says which and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.serverapp import Grid

from fedvision import registry
from fedvision.engines.base import Engine, Tell
from fedvision.flower.hosting import Forecast, Recipe
from fedvision.types import PluginSpec

START = 8.0
"""Seconds that worker processes take to start."""


class AutoEngine:
    """Picks an engine when it is opened.

    Args:
        workers: Number of worker processes where several are of use; 0 for one a processor.

    Raises:
        ValueError: ``workers`` is below 0.
    """

    def __init__(self, *, workers: int = 0) -> None:
        if workers < 0:
            raise ValueError(f"workers must be >= 0, not {workers}")
        self._workers = workers

    @contextmanager
    def open(self, recipe: Recipe, *, run_id: int = 1, tell: Tell = print) -> Iterator[Grid]:
        """Open a Grid of the engine that is expected to be fastest."""
        workers = self._workers or len(os.sched_getaffinity(0))
        spec, why = choose(recipe.forecast(), workers)
        tell(f"engine {spec.use}: {why}")
        engine: Engine = registry.build("engine", spec)
        with engine.open(recipe, run_id=run_id, tell=tell) as grid:
            yield grid


def choose(forecast: Forecast, workers: int) -> tuple[PluginSpec, str]:
    """Return an engine for a processor and the reason in a few words.

    Args:
        forecast: What is ahead.
        workers: Processes that the machine can feed.
    """
    useful = min(workers, forecast.cohort)
    seconds = START + forecast.seconds / max(1, useful)
    alone = f"about {forecast.seconds:.0f} s of training in one process"
    if useful > 1 and seconds < forecast.seconds:
        return PluginSpec(use="ray", args={"workers": useful}), f"{alone}, {seconds:.0f} s in {useful}"
    return PluginSpec(use="serial"), f"{alone}; more would not be faster"
