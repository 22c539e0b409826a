"""One simulated run: a built federation, an engine and a run folder, from the first round to the report."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from fedvision.engines.base import Engine
from fedvision.engines.client_host import SimulatedClientHosts
from fedvision.engines.virtual_time import in_time
from fedvision.experiment import Experiment
from fedvision.runs.folder import RunFolder
from fedvision.runs.run_recorder import RunRecorder
from fedvision.server.central_evaluation import evaluate_centrally
from fedvision.stages import stage
from fedvision.training import feature_cache
from fedvision.training.client_trainer import loop_settings
from fedvision.types import State


class Simulation(RunRecorder):
    """Runs a federation on this machine and keeps its journal.

    Args:
        experiment: What to run.
        folder: Where it is recorded; a folder with a checkpoint is continued.
        threads: Threads of each process's arithmetic.
        options: As ``RunRecorder`` takes them.
    """

    def __init__(
        self, experiment: Experiment, folder: RunFolder, *, threads: int = 1, **options: Any
    ) -> None:
        super().__init__(experiment, folder, **options)
        self.threads = threads
        self.host_factory: SimulatedClientHosts
        """What makes what trains; there once the run goes on."""
        self.record_split(experiment.split.facts(experiment.dataset.classes), experiment.split.totals)

    def run(self, engine: Engine) -> State:
        """Run the rounds that are left, write everything else, and return the final state."""
        with self.interruption:
            self.host_factory = host_factory = self.hosts()
            self.resume()
            with self.progress, engine.open(host_factory, on_notice=self.note) as grid, _settled():
                self.run_rounds(
                    in_time(grid, self.config, host_factory.cost),
                    host_factory.client_registry(),
                    self._measure(),
                )
                self.worker_memory = getattr(grid, "peak_memory", list)()
            self.finish(host_factory.trainer(), host_factory.dataset.test)
        return self.state

    def hosts(self) -> SimulatedClientHosts:
        """Return what trains: the network on images or, behind frozen layers, the rest on features."""
        hosts = SimulatedClientHosts(
            config=self.config,
            dataset=self.experiment.dataset,
            split=self.experiment.split,
            model=self.experiment.model,
            memory=(self.folder.path / "clients").resolve(),
            threads=self.threads,
        )
        images = hosts.dataset.train
        parts, why = feature_cache.frozen_part(self.config, hosts.model, images)
        if why:
            self.note(f"every image passes the frozen layers in every round, as {why}")
        if why or parts is None:
            return hosts
        features = feature_cache.on_features(
            self.config,
            hosts.dataset,
            hosts.model,
            parts,
            loop_settings(self.config, images.images.shape[-1]).forward,
            used=hosts.split.used(),
            on_progress=stage,
        )
        return replace(hosts, config=features.config, dataset=features.dataset, model=features.model)

    def _measure(self) -> Any:
        test = self.experiment.dataset.test
        if test is None:
            return None
        return partial(evaluate_centrally, images=len(test), batch_size=self.config.evaluation.batch_size)


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
