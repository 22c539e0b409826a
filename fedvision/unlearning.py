"""Take clients out of a model in closed form, or into it: their sums are subtracted or added.

A run with ``strategy.use = "closed-form"`` keeps the exact sums over its clients in its checkpoint. A
client's own sums are not kept: they are computed again from its images with the run's constants, and
subtracted. What is left has the bits of the sums over the other clients, so the model is the one that these
would have made with the same constants. A client that was not selected, did not answer in time or was taken
out before is taken in alike.

The constants stay as they are: mean and deviation of the features, the weights of the classes and the
regularization or shrinkage, which all clients determined together. The old run folder stays, too: who wants
the clients forgotten deletes it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedvision import registry
from fedvision.algorithms.closed_form.strategy import ClosedForm
from fedvision.api import RunResult, open_folder
from fedvision.data.identity import identity
from fedvision.data.shards import Shard
from fedvision.errors import ConfigError, FedVisionError, RunError, RunFolderError
from fedvision.experiment import Experiment
from fedvision.files import read_json
from fedvision.flower.strategy import FlowerStrategy
from fedvision.formatting import listed
from fedvision.reporting.pages import page_writer
from fedvision.runs.checkpoint import Checkpoint
from fedvision.runs.folder import RunFolder
from fedvision.runs.folder_lock import claimed
from fedvision.runs.model_description import ModelDescription
from fedvision.server.refinement import untrained_record
from fedvision.server.scores import Scores
from fedvision.simulation import Simulation
from fedvision.stages import stage
from fedvision.types import Query, State


def unlearn(
    run: str | Path, clients: Sequence[int], *, out: str | Path | None = None, threads: int = 1
) -> RunResult:
    """Write a new run folder whose model rests on the other clients alone.

    Args:
        run: Folder of a finished simulation with ``strategy.use = "closed-form"``; it stays as it is.
        clients: Numbers of the clients to take out.
        out: The new folder; ``RUN-without-K`` by default.
        threads: Threads of the arithmetic, >= 1.

    Raises:
        ConfigError: The run is of another kind, a client is not in its model, or none would be left.
        RunFolderError: There is no such run, its data are others now, or the new folder is not empty.
        RunError: The sums do not fit the run's.
    """
    old = _finished(run)
    inside, gone = old.rounds()[-1]["clients"], sorted(set(clients))
    if strange := [client for client in gone if client not in inside]:
        raise ConfigError(
            f"{old.path}: client {strange[0]} is not in its model; name one of {len(inside)} that are"
        )
    if len(gone) == len(inside):
        raise ConfigError(f"{old.path}: no client would be left; leave at least one")
    return _changed(old, _Change(without=gone), out, threads)


def include(
    run: str | Path, clients: Sequence[int], *, out: str | Path | None = None, threads: int = 1
) -> RunResult:
    """Write a new run folder whose model rests on further clients of the experiment, too.

    Args:
        run: As ``unlearn`` takes it.
        clients: Numbers of the clients to take in: clients of the experiment that are not in the model.
        out: The new folder; ``RUN-with-K`` by default.
        threads: Threads of the arithmetic, >= 1.

    Raises:
        ConfigError: The run is of another kind, or a client is in its model or not in its experiment.
        RunFolderError: There is no such run, its data are others now, or the new folder is not empty.
        RunError: The sums do not fit the run's.
    """
    old = _finished(run)
    inside = old.rounds()[-1]["clients"]
    if known := sorted(set(clients).intersection(inside)):
        raise ConfigError(f"{old.path}: client {known[0]} is in its model already; name one that is not")
    return _changed(old, _Change(including=sorted(set(clients))), out, threads)


@dataclass(frozen=True, kw_only=True)
class _Change:
    """Clients by number, rising; one of the two is empty."""

    without: Sequence[int] = ()
    including: Sequence[int] = ()

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


def _changed(old: RunFolder, change: _Change, out: str | Path | None, threads: int) -> RunResult:
    """Write the run folder of the changed model."""
    if threads < 1:
        raise ConfigError(f"threads must be >= 1, not {threads}")
    if modules := old.invocation().get("modules"):
        registry.allow_folder(Path(modules[0]))
    config = old.config()
    built = Experiment.build(config)
    _check_data(old, built)
    if strange := [client for client in change.clients if not 0 <= client < len(built.split.clients)]:
        raise ConfigError(
            f"{old.path}: there is no client {strange[0]} in its experiment; name one from 0 to "
            f"{len(built.split.clients) - 1}"
        )
    checkpoint = old.checkpoints.load()
    if checkpoint is None:
        raise RunFolderError(f"{old.path}: it has no checkpoint, in which the sums are kept; run it again")
    path = Path(out) if out is not None else old.path.with_name(old.path.name + change.folder)
    with claimed(path, "name another one with --out"):
        folder = open_folder(config, path, resume=False)
        work = _Changed(built, folder, threads=threads, write_pages=page_writer())
        with work.interruption, work.progress:
            try:
                work.change(checkpoint, change, change.applied(old.rounds()[-1]["clients"]))
            except (FedVisionError, KeyboardInterrupt) as error:
                work.mark_failed(error)
                raise
    return RunResult(folder=folder, rounds=folder.rounds(), state=work.state)


class _Changed(Simulation):
    """Makes the last round of a run once more, with other clients."""

    def change(self, checkpoint: Checkpoint, change: _Change, clients: Sequence[int]) -> None:
        """Subtract or add clients' sums and write the model as that of the run's last round."""
        began = time.perf_counter()
        hosts = self.hosts()
        self.take_up(checkpoint)
        strategy = self._strategy()
        who = listed([f"client {client}" for client in change.clients])
        stage(f"computing the sums of {who}")
        trainer = hosts.trainer()
        query = Query(use="weighted-products", tensors=strategy.constants)

        def sums_of(some: Sequence[int]) -> list[State]:
            return [trainer.statistic(client, self.done, self.state, query)[0] for client in some]

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
        if (test := hosts.dataset.test) is not None:
            scores = Scores(self.experiment.task, hosts.client_registry(), self.experiment.metrics)
            record["server"] = scores.total([trainer.measure(state, Shard.whole(test))])
        self.round_done(record, {"total": time.perf_counter() - began}, state)
        self.finish(trainer, test)

    def description(self) -> ModelDescription:
        """Return the model's description, whose class counts are those of the clients in it."""
        counts = tuple(self._strategy().sums["count"].tolist())
        return replace(super().description(), class_counts=counts)

    def _strategy(self) -> ClosedForm:
        strategy = self.experiment.strategy
        assert isinstance(strategy, FlowerStrategy)
        assert isinstance(strategy.inner, ClosedForm)
        return strategy.inner


def _finished(run: str | Path) -> RunFolder:
    """Return the folder of a simulation whose sums are kept.

    Raises:
        ConfigError: The run is not finished, is one across machines, or has another strategy.
    """
    old = RunFolder.read(Path(run))
    use = old.config().strategy.use
    if use != "closed-form":
        raise ConfigError(
            f"{old.path}: its strategy is {use!r}, and clients can be taken out of a model or into it with "
            "[strategy] use = 'closed-form' alone"
        )
    if old.summary().get("status") != "finished":
        raise ConfigError(f"{old.path}: this run is not finished; go on with it first")
    if old.members().members:
        raise ConfigError(
            f"{old.path}: its clients are on machines of their own, and their sums cannot be computed here; "
            "only clients of a simulation can be taken out or in"
        )
    return old


def _check_data(old: RunFolder, built: Experiment) -> None:
    """Refuse other images, or another split of them, than the run's.

    Raises:
        RunFolderError: They differ.
    """
    before, now = read_json(old.path / "data.json"), identity(built.dataset, train=True)
    if built.weights is not None:
        now["tensors of model.weights"] = built.weights.sha256
    others = [part for part in now if before.get(part) != now[part]]
    if old.split().get("digest") != built.split.facts(built.dataset.classes)["digest"]:
        others.append("split")
    if others:
        raise RunFolderError(
            f"{old.path}: the data are not those of the run: other {' and '.join(others)}; restore them"
        )
