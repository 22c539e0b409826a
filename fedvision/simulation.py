"""One simulated run: a built federation, an engine and a run folder, from the first round to the report."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fedvision.engines.base import Engine
from fedvision.engines.timed import in_time
from fedvision.federation import Federation
from fedvision.flower.hosting import SimulatedClients
from fedvision.flower.measure import measure_parts
from fedvision.journal import RunJournal
from fedvision.reporting.folder import RunFolder
from fedvision.types import State


class Simulation(RunJournal):
    """Runs a federation on this machine and keeps its journal.

    Args:
        federation: What to run.
        folder: Where it is recorded; a folder with a checkpoint is continued.
        threads: Threads of each process's arithmetic.
        options: As ``RunJournal`` takes them.
    """

    def __init__(
        self, federation: Federation, folder: RunFolder, *, threads: int = 1, **options: Any
    ) -> None:
        super().__init__(federation, folder, **options)
        self.threads = threads
        self.record_split(federation.split.facts(federation.dataset.classes), federation.split.totals)

    def run(self, engine: Engine) -> State:
        """Run the rounds that are left, write everything else, and return the final state."""
        recipe = self._recipe()
        with self.interruption:
            self.resume()
            with self.progress, engine.open(recipe, tell=self.note) as grid, _settled():
                self.play(in_time(grid, self.config, recipe.cost), recipe.roster(), self._measure())
            self.finish(recipe.worker())
        return self.state

    def _recipe(self) -> SimulatedClients:
        return SimulatedClients(
            config=self.config,
            dataset=self.federation.dataset,
            split=self.federation.split,
            model=self.federation.model,
            memory=(self.folder.path / "clients").resolve(),
            threads=self.threads,
        )

    def _measure(self) -> Any:
        test = self.federation.dataset.test
        if test is None:
            return None
        return partial(measure_parts, images=len(test), batch_size=self.config.evaluation.batch_size)


@contextmanager
def _settled() -> Iterator[None]:
    """Keep what is there before the first round out of the collector's full passes of 0.15 s."""
    ours = gc.get_freeze_count() == 0
    gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
