"""The last round of a run made once more, with other clients."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fedvision.algorithms.closed_form.sums import PRODUCTS
from fedvision.api import RunResult, open_folder
from fedvision.data.dataset import ImageSet
from fedvision.data.shards import Shard
from fedvision.deployment.server.deployment import FILE as DEPLOYMENT
from fedvision.deployment.server.own_images import server_trainer
from fedvision.errors import ConfigError, FedVisionError, RunError
from fedvision.experiment import Experiment
from fedvision.flower.client_registry import ClientRegistry, SimulatedClientRegistry
from fedvision.formatting import listed
from fedvision.reporting.pages import page_writer
from fedvision.runs.folder import RunFolder
from fedvision.runs.folder_lock import claimed
from fedvision.runs.member_register import FILE as MEMBERS
from fedvision.runs.model_description import ModelDescription
from fedvision.runs.run_recorder import RunRecorder
from fedvision.server.refinement import untrained_record
from fedvision.server.scores import Scores
from fedvision.simulation import Simulation
from fedvision.stages import stage
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import Query, State
from fedvision.unlearning.old_run import OldRun, closed_form

Given: TypeAlias = "Mapping[int, State | None]"
"""The sums of the clients that are named, by number; None of those whose images are here."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Clients by number, rising; one of the two is empty."""

    without: Sequence[int] = ()
    including: Sequence[int] = ()
    sums: Given = field(default_factory=dict)
    """What is known of their sums."""

    @property
    def clients(self) -> Sequence[int]:
        """Return whose sums are needed."""
        return [*self.without, *self.including]

    @property
    def folder(self) -> str:
        """Return what is added to the old folder's name."""
        place = "without" if self.without else "with"
        return f"-{place}-" + "-".join(str(client) for client in self.clients)

    def applied(self, clients: Sequence[int]) -> list[int]:
        """Return the clients of the new model, rising."""
        return sorted(set(clients).difference(self.without).union(self.including))


def changed(old: OldRun, change: Change, out: str | Path | None, threads: int) -> RunResult:
    """Write the run folder of the changed model; see ``unlearn`` and ``include``."""
    if threads < 1:
        raise ConfigError(f"threads must be >= 1, not {threads}")
    built = old.build()
    known = len(built.split.clients)
    if not old.deployed and (strange := [client for client in change.clients if not 0 <= client < known]):
        raise ConfigError(
            f"{old.path}: there is no client {strange[0]} in its experiment; name one from 0 to {known - 1}"
        )
    checkpoint = old.checkpoint
    path = Path(out) if out is not None else old.path.with_name(old.path.name + change.folder)
    with claimed(path, "name another one with --out"):
        folder = open_folder(old.config, path, resume=False)
        work: _Changed = (
            _ChangedDeployment(built, folder, old=old, write_pages=page_writer())
            if old.deployed
            else _ChangedSimulation(built, folder, threads=threads, write_pages=page_writer())
        )
        with work.interruption, work.progress:
            try:
                work.take_up(checkpoint)
                work.change(change, change.applied(old.inside))
            except (FedVisionError, KeyboardInterrupt) as error:
                work.mark_failed(error)
                raise
    return RunResult(folder=folder, rounds=folder.rounds(), state=work.state)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What is computed with, and on what."""

    trainer: ClientTrainer
    """Measures, and computes the sums of clients whose images are here."""
    client_registry: ClientRegistry
    """The clients."""
    test: ImageSet | None
    """The server's test images, or their features."""


class _Changed(RunRecorder, ABC):
    """Makes the last round of a run once more, with other clients."""

    @abstractmethod
    def place(self) -> _Place:
        """Return where the work is done."""

    def change(self, change: Change, clients: Sequence[int]) -> None:
        """Subtract or add clients' sums and write the model as that of the run's last round."""
        began = time.perf_counter()
        place, strategy = self.place(), closed_form(self.experiment)
        who = listed([self._called(client) for client in change.clients])
        stage(f"computing the sums of {who}")
        query = Query(use=PRODUCTS, tensors=strategy.constants)

        def sums_of(some: Sequence[int]) -> list[State]:
            known = [change.sums.get(client) for client in some]
            return [
                place.trainer.statistic(client, self.done, self.state, query)[0] if sums is None else sums
                for client, sums in zip(some, known, strict=True)
            ]

        try:
            sums = strategy.change_clients(
                without=sums_of(change.without), including=sums_of(change.including)
            )
        except ValueError as error:
            raise RunError(f"{who}: {error}") from error
        state = self.state | strategy.head_tensors(sums, self.state)
        self.note(
            f"{who} taken {'out' if change.without else 'in'}; mean, deviation, class weights and "
            f"{strategy.key} are as before"
        )
        record: dict[str, Any] = untrained_record(self.done)
        record |= {"clients": list(clients), "examples": int(sums.count.sum()), "changed": True}
        record |= {"unlearned": list(change.without), "included": list(change.including)}
        record |= {"strategy": {strategy.key: strategy.chosen}, "server": None, "local": None}
        if place.test is not None:
            scores = Scores(self.experiment.task, place.client_registry, self.experiment.metrics)
            record["server"] = scores.total([place.trainer.measure(state, Shard.whole(place.test))])
        self.round_done(record, {"total": time.perf_counter() - began}, state)
        self.finish(place.trainer, place.test)

    def description(self) -> ModelDescription:
        """Return the model's description, whose class counts are those of the clients in it."""
        counts = tuple(closed_form(self.experiment).sums["count"].tolist())
        return replace(super().description(), class_counts=counts)

    def _called(self, client: int) -> str:
        return f"client {self.names().get(client, client)}"


class _ChangedSimulation(_Changed, Simulation):
    """Clients whose images are here."""

    def place(self) -> _Place:
        """Return the engine's own host."""
        hosts = self.hosts()
        return _Place(
            trainer=hosts.trainer(), client_registry=hosts.client_registry(), test=hosts.dataset.test
        )


class _ChangedDeployment(_Changed):
    """Clients with machines of their own.

    Args:
        experiment: Built as for a server.
        folder: The new folder.
        old: The run; the new folder gets its register and key, by which clients know it.
        write_pages: As ``RunRecorder`` takes it.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        *,
        old: OldRun,
        write_pages: Callable[[RunFolder], object],
    ) -> None:
        super().__init__(experiment, folder, write_pages=write_pages)
        for file in (MEMBERS, DEPLOYMENT):
            shutil.copyfile(old.path / file, folder.path / file)
        facts = old.folder.split()
        self.record_split(facts, np.array(facts["totals"], np.int64))

    def names(self) -> Mapping[int, str]:
        """Return the clients' names by number."""
        return self.folder.members().names

    def place(self) -> _Place:
        """Return the server's own images."""
        counts = tuple(int(count) for count in self.folder.split()["totals"])
        return _Place(
            trainer=server_trainer(self.experiment, self.folder),
            client_registry=SimulatedClientRegistry(clients=len(self.names()), counts=counts),
            test=self.experiment.dataset.test,
        )
