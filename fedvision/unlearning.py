"""Take clients out of a model in closed form: their sums are subtracted, and the head is solved anew.

A run with ``strategy.use = "closed-form"`` keeps the exact sums over its clients in its checkpoint. A
client's own sums are not kept: they are computed again from its images with the run's constants, and
subtracted. What is left has the bits of the sums over the other clients, so the model is the one that these
would have made with the same constants.

The constants stay as they are: mean and deviation of the features, the weights of the classes and the
regularization or shrinkage, which all clients determined together. The old run folder stays, too: who wants
the clients forgotten deletes it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
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
from fedvision.types import Query


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
        ConfigError: The run is of another kind, or a client is not in its model.
        RunFolderError: There is no such run, its data are others now, or the new folder is not empty.
        RunError: The sums do not fit the run's.
    """
    if threads < 1:
        raise ConfigError(f"threads must be >= 1, not {threads}")
    old = RunFolder.read(Path(run))
    gone = sorted(set(clients))
    left = _others(old, gone)
    if modules := old.invocation().get("modules"):
        registry.allow_folder(Path(modules[0]))
    config = old.config()
    if config.strategy.use != "closed-form":
        raise ConfigError(
            f"{old.path}: its strategy is {config.strategy.use!r}, and a client can be taken out of a model "
            "of [strategy] use = 'closed-form' alone"
        )
    built = Experiment.build(config)
    _check_data(old, built)
    checkpoint = old.checkpoints.load()
    if checkpoint is None:
        raise RunFolderError(f"{old.path}: it has no checkpoint, in which the sums are kept; run it again")
    name = "-".join(str(client) for client in gone)
    path = Path(out) if out is not None else old.path.with_name(f"{old.path.name}-without-{name}")
    with claimed(path, "name another one with --out"):
        folder = open_folder(config, path, resume=False)
        work = _Without(built, folder, threads=threads, write_pages=page_writer())
        with work.interruption, work.progress:
            try:
                work.take_out(checkpoint, gone, left)
            except (FedVisionError, KeyboardInterrupt) as error:
                work.mark_failed(error)
                raise
    return RunResult(folder=folder, rounds=folder.rounds(), state=work.state)


class _Without(Simulation):
    """Makes the last round of a run once more, without some of its clients."""

    def take_out(self, checkpoint: Checkpoint, gone: Sequence[int], left: Sequence[int]) -> None:
        """Subtract clients' sums and write the model of the others as that of the run's last round."""
        began = time.perf_counter()
        hosts = self.hosts()
        self.take_up(checkpoint)
        strategy = self.experiment.strategy
        assert isinstance(strategy, FlowerStrategy)
        assert isinstance(strategy.inner, ClosedForm)
        who = listed([f"client {client}" for client in gone])
        stage(f"computing the sums of {who}")
        query = Query(use="weighted-products", tensors=strategy.inner.constants)
        trainer = hosts.trainer()
        own = [trainer.statistic(client, self.done, self.state, query)[0] for client in gone]
        try:
            sums = strategy.inner.take_out(own)
        except ValueError as error:
            raise RunError(f"{who}: {error}") from error
        state = self.state | strategy.inner.head_tensors(sums, self.state)
        self.note(
            f"{who} taken out; mean, deviation, class weights and regularization or shrinkage are as before"
        )
        record: dict[str, Any] = untrained_record(self.done)
        record |= {"clients": list(left), "examples": int(sums.count.sum()), "changed": True}
        record |= {"unlearned": list(gone), "strategy": {strategy.inner.key: strategy.inner.chosen}}
        record |= {"server": None, "local": None}
        if (test := hosts.dataset.test) is not None:
            scores = Scores(self.experiment.task, hosts.client_registry(), self.experiment.metrics)
            record["server"] = scores.total([trainer.measure(state, Shard.whole(test))])
        self.round_done(record, {"total": time.perf_counter() - began}, state)
        self.finish(trainer, test)

    def description(self) -> ModelDescription:
        """Return the model's description, whose class counts are those of the clients that are left."""
        strategy = self.experiment.strategy
        assert isinstance(strategy, FlowerStrategy)
        assert isinstance(strategy.inner, ClosedForm)
        return replace(super().description(), class_counts=tuple(strategy.inner.sums["count"].tolist()))


def _others(old: RunFolder, gone: Sequence[int]) -> list[int]:
    """Return the clients in a run's model that stay in it.

    Raises:
        ConfigError: The run is not finished, is one across machines, or lacks such a client.
    """
    if old.summary().get("status") != "finished":
        raise ConfigError(f"{old.path}: this run is not finished; go on with it first")
    if old.members().members:
        raise ConfigError(
            f"{old.path}: its clients are on machines of their own, and their sums cannot be computed here; "
            "only clients of a simulation can be taken out"
        )
    inside = old.rounds()[-1]["clients"]
    if strange := [client for client in gone if client not in inside]:
        raise ConfigError(
            f"{old.path}: client {strange[0]} is not in its model; name one of {len(inside)} that are"
        )
    if len(gone) == len(inside):
        raise ConfigError(f"{old.path}: no client would be left; leave at least one")
    return [client for client in inside if client not in gone]


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
