"""What every run does, whatever carries its messages: go on from a checkpoint, keep the journal, finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedvision import memory, plugin_folder, registry
from fedvision.algorithms.snapshot import restore, snapshot
from fedvision.data.dataset import ImageSet
from fedvision.data.identity import identity
from fedvision.errors import FedVisionError, PluginError, RecordError, RunError
from fedvision.experiment import Experiment
from fedvision.files import plain
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.guard import guarded
from fedvision.flower.internals import SERVER_NODE
from fedvision.flower.strategy import layers
from fedvision.interruption import Interruption
from fedvision.models.lora import merge_in_place
from fedvision.models.meta import model_with, to_meta
from fedvision.models.parameter_groups import ParameterGroups, network_bytes
from fedvision.models.state import get_state, load_state, size_in_bytes
from fedvision.models.weights import tensors_of
from fedvision.runs import side_networks
from fedvision.runs.best_model import BestModel
from fedvision.runs.checkpoint import Checkpoint
from fedvision.runs.events import BEGAN, Event, named, round_events, shown
from fedvision.runs.final_pictures import Measured, keep_wrong
from fedvision.runs.folder import RunFolder
from fedvision.runs.model_description import ModelDescription, counts_of, describe
from fedvision.runs.progress import Progress, Silent
from fedvision.runs.stop_request import STOPPED, StopWatch
from fedvision.server import server_app
from fedvision.server.round_state import RoundState
from fedvision.stages import stage
from fedvision.tasks.calibration import Calibration
from fedvision.training.client_trainer import ClientTrainer, probability_scale
from fedvision.training.evaluate import Evaluation
from fedvision.types import State

SHOWN = 5
"""Clients that failed to tell, of whom notices are made."""
Measure = Callable[[Grid, ClientRegistry, State], Evaluation]


class RunRecorder:
    """A federation in its folder: state, rounds done, and all that is written.

    Args:
        experiment: What to run.
        folder: Where it is recorded; a folder with a checkpoint is continued.
        progress: Who shows the progress; nobody by default.
        write_pages: Writes the report into a run folder that is complete.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        *,
        progress: Progress | None = None,
        write_pages: Callable[[RunFolder], object] = lambda folder: None,
    ) -> None:
        registry.allow_folder(experiment.plugins)
        self.experiment, self.folder, self.config = experiment, folder, experiment.config
        self.progress = progress or Silent()
        self.write_pages = write_pages
        self.interruption = Interruption()
        """Is entered around all that may be interrupted."""
        self.stop = StopWatch(folder.path)
        """Is entered inside ``interruption``: an operator may ask the run to end."""
        self.worker_memory: Sequence[Mapping[str, int]] = []
        """What other processes that trained have held at most, each as ``memory.peak`` returns it."""
        self.notices: list[str] = []
        """Notices while it ran."""
        for layer in layers(experiment.strategy).values():
            snapshot(layer)  # what a checkpoint cannot hold is an error before anything is written
        train_here = len(experiment.split.clients) > 0
        data = identity(experiment.dataset, train=train_here)
        data |= tensors_of(experiment.weights)
        self._changed_code = folder.settle(data, plugin_folder.sources(self.config.to_dict()))
        groups = ParameterGroups.of(experiment.model, self.config.model)
        names = groups.shared
        self.state = get_state(experiment.model, names)
        held = {*names, *groups.frozen}  # frozen tensors are in the network, and nobody changes them
        others = {name: t for name, t in experiment.model.state_dict().items() if name not in held}
        self._initial = {name: tensor.detach().cpu().clone() for name, tensor in others.items()}
        # From here on the state is the model: its numbers are not held twice, nor sent to every worker.
        to_meta(experiment.model, names)
        self.done = 0
        self.rounds = RoundState(self.config.round, self.config.seed)
        self.best = BestModel(self.config.evaluation)
        self._reliability: Mapping[str, Any] | None = None
        """What clients tell of the last model's probabilities, where the server has no images."""
        self._totals: NDArray[np.int64] = np.zeros(len(experiment.dataset.classes), np.int64)

    def run_rounds(self, grid: Grid, client_registry: ClientRegistry, measure: Measure | None) -> None:
        """Run the rounds that are left.

        Args:
            grid: Carries the messages.
            client_registry: The federation's members.
            measure: Measures a state on the server's test images; None where it has none.

        Raises:
            RunError: Nobody succeeded for several rounds in a row.
        """
        plan = server_app.ServerPlan(
            config=self.config,
            strategy=self.experiment.strategy,
            state=dict(self.state),
            journal=self,
            first_round=self.config.rounds + 1 if self.over else self.done + 1,
            client_registry=client_registry,
            measure=None if self.experiment.personal else measure,
            # Where each client has a model of its own there is none to be trusted.
            asks_trust=measure is None and not self.experiment.personal,
            extra_metrics=self.experiment.metrics,
            make_model=partial(model_with, self.experiment.model),
            rounds=self.rounds,
            updates=self.experiment.updates,
        )
        try:
            server_app.build(plan)(grid=grid, context=_context(self.config.to_toml()))
        except RecordError:
            raise
        except RunError as error:
            raise RunError(f"{error}{self._write_last_model()}") from error

    def _write_last_model(self) -> str:
        """Write the model of the last good round and note where it is."""
        if not self.done:
            return ""
        with suppress(RecordError):
            self._write_model()
            path = self.folder.path / "model.safetensors"
            return f"; the model of round {self.done} is in {path} and in the checkpoint beside it"
        return ""

    def _write_model(self) -> None:
        self.folder.write_model(self.whole(self.state), self.description())

    def _write_best(self) -> None:
        """Write the best model, which no temperature was found for."""
        if self.best.state:
            scale = probability_scale(self.config, len(self.experiment.dataset.classes))
            described = replace(self.description(), rounds=self.best.round, probability_scale=scale)
            self.folder.write_model(self.whole(self.best.state), described, best=True)

    def whole(self, state: State) -> State:
        """Return all tensors of the network that holds a state, adapters merged."""
        model = model_with(self.experiment.model, {**self._initial, **state})
        merge_in_place(model)
        return _full_state(model)

    def description(self) -> ModelDescription:
        """Return what must be known of the final model to use it."""
        return describe(
            self.experiment,
            rounds=self.done,
            class_counts=counts_of(self.folder.split()),
            probability_scale=self._probability_scale(),
        )

    def _probability_scale(self) -> float:
        """Return s, with which the final model predicts softmax(s z): the loss's, calibrated where it was."""
        last = (self.folder.rounds() or [{}])[-1].get("calibration") or {}
        scale = probability_scale(self.config, len(self.experiment.dataset.classes))
        return scale * float(last.get("factor", 1.0))

    def mark_failed(self, error: BaseException) -> None:
        """Note in the run folder that and why the run ended early."""
        stopped = isinstance(error, KeyboardInterrupt)
        if stopped and self.stop.requested:
            rest = ", without waiting for the end of the next" if self.stop.now else ""
            self.note(f"{STOPPED} after round {self.done}{rest}")
        summary: dict[str, Any] = {"status": "stopped" if stopped else "failed", "rounds": self.done}
        if not stopped:
            summary["error"] = str(error)
        with suppress(FedVisionError):  # the error itself says more than why there is no report of it
            self.folder.write_summary(summary)
            if self.done and not stopped:
                self.write_pages(self.folder)

    # The journal of the server (server.server_app.Journal).

    def begin(self, client_registry: ClientRegistry) -> None:
        """Show the progress bar; a run that was begun before notes that it goes on."""
        if not self.over:
            stage(f"round {self.done + 1} of {self.config.rounds} begins")
        self.progress.start(self.config.rounds, self.done + 1)
        for module in self._changed_code:
            self.note(f"the source of {module} was changed since the run's first part")
        for notice in self._data_notices:
            self.progress.note(notice)
        if not self.over:
            began = any(event["what"] == BEGAN for event in self.folder.events())
            again = self.folder.went_on
            self.folder.append_event(self.done + 1, again if began else BEGAN)

    @cached_property
    def _data_notices(self) -> list[str]:
        """What a person should know of the data: found once, as equal images are searched for."""
        return self.experiment.notices()

    def client_done(self, round: int, done: int, total: int) -> None:
        """Move the progress bar."""
        self.interruption.check()
        self.stop.check_now()
        self.progress.client_done(round, done, total)

    def round_done(
        self,
        record: Mapping[str, Any],
        seconds: Mapping[str, float],
        state: State,
        reliability: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a round's line, then its checkpoint; a round that was interrupted is not written."""
        self.interruption.check()
        self.state, self.done, self._reliability = state, int(record["round"]), reliability
        self.best.keep(self.done, state)
        self.folder.append_round(record, seconds)
        last = self.done == self.config.rounds or "stopped_early" in record
        self.stop.look()
        stops = self.stop.requested and not last
        if self.done % self.config.checkpoint_every == 0 or last or stops:
            self._checkpoint()
        self.progress.round_done(self.done, record, seconds)
        self._show(record)
        for one in (reliability or {}).get("held_out", {}).get("failed", ())[:SHOWN]:
            client = named(one["client"], self.names())
            self.note(f"client {client} is not in the calibration on held-out images: {one['reason']}")
        if stops:
            self.stop.check()

    def enough(self, record: dict[str, Any]) -> bool:
        """Return whether the run's patience is over, and note so."""
        if not self.best.measured(record) or record["round"] == self.config.rounds:
            return False
        record["stopped_early"] = self.best.reason()
        self.note(self.best.reason())
        return True

    @property
    def over(self) -> bool:
        """Whether no round is left to run."""
        return self.done == self.config.rounds or any("stopped_early" in one for one in self.folder.rounds())

    def given_up(self, record: Mapping[str, Any]) -> None:
        """Note the events of a round that is not recorded."""
        for event in self._show(record):
            self.folder.append_event(event.round, event.what, event.client or None)

    def names(self) -> Mapping[int, str]:
        """Return the clients' names by number; empty in a simulation."""
        return {}

    def _show(self, record: Mapping[str, Any]) -> list[Event]:
        """Show what happened in a round."""
        found = round_events(record, self.names(), buffered=self.config.round.buffer > 0)
        for place, line in enumerate(shown(found)):
            self.progress.note(line, {"round": found[place].round, "client": found[place].client})
        return found

    def note(self, sentence: str) -> None:
        """Show a notice, now and in the report."""
        self.notices.append(sentence)
        with suppress(RecordError):  # the round's own record will say that the disk is full
            self.folder.append_event(min(self.done + 1, self.config.rounds), sentence)
        self.progress.note(sentence)

    def _checkpoint(self) -> None:
        tensors: dict[str, State] = {"model": self.state}
        values: dict[str, Any] = {}
        outstanding, values["rounds"] = self.rounds.snapshot(self.done)
        tensors |= {"rounds": outstanding} if outstanding else {}
        kept, values["best"] = self.best.snapshot()
        tensors |= {"best": kept} if kept else {}
        values |= {"reliability": plain(self._reliability)} if self._reliability else {}
        for name, layer in layers(self.experiment.strategy).items():
            try:
                tensors[name], values[name] = snapshot(layer)
            except PluginError as error:
                raise RunError(f"round {self.done}: {error}") from error
        self._save(self.done, tensors, values)

    def _save(self, round: int, tensors: Mapping[str, State], values: Mapping[str, Any]) -> None:
        """Write a checkpoint, on which the run may rely before anybody learns of the next round."""
        self.folder.checkpoints.save(round, tensors, values)

    def resume(self) -> None:
        """Take up the run where its last checkpoint left it."""
        checkpoint = self.folder.checkpoints.load()
        if checkpoint is not None:
            self.take_up(checkpoint)

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Take up a run where a checkpoint left it."""
        self.done = checkpoint.round
        # In the model's order, which the file does not keep: stock strategies count tensors by position.
        self.state = {name: checkpoint.tensors["model"][name] for name in self.state}
        self.rounds.restore(checkpoint.tensors.get("rounds", {}), checkpoint.values.get("rounds", {}))
        self.best.restore(checkpoint.tensors.get("best", {}), checkpoint.values["best"])
        self._reliability = checkpoint.values.get("reliability")
        for name, layer in layers(self.experiment.strategy).items():
            restore(layer, checkpoint.tensors.get(name, {}), checkpoint.values[name])

    def record_split(self, facts: Mapping[str, Any], totals: NDArray[np.int64]) -> None:
        """Write which client has what.

        Args:
            facts: As ``Split.facts`` gives them.
            totals: int64 [C]: images of each class over all clients.
        """
        self.folder.write_split(facts)
        self._totals = totals

    def finish(self, trainer: ClientTrainer, test: ImageSet | None) -> None:
        """Write the final model, what it gets wrong, how the run ended, and the report.

        Args:
            trainer: What measured.
            test: What it measured on: the experiment's test images, or their features.
        """
        stage("writing the model and the report")
        kept = {key: value for key, value in self.folder.summary().items() if key == "baselines"}
        self._write_model()
        self._write_best()
        for layer in layers(self.experiment.strategy).values():
            side_networks.write(self.folder.path, layer, self.experiment.dataset.classes)
        load_state(trainer.model, {**trainer.initial, **self.state})
        with guarded("the model, on the test images after the last round,"):
            found = self._keep_wrong(trainer, test)
        calibration = found.to_record() if found else self._reliability
        self.folder.write_summary(
            {
                "status": "finished",
                "rounds": self.done,
                "notices": [*self._data_notices, *self.notices],
                "parameters": sum(p.numel() for p in self.experiment.model.parameters()),
                "state_bytes": size_in_bytes(self.state),
                "network_bytes": network_bytes(self.experiment.model),
                "memory": {**memory.peak(), "workers": self.worker_memory},
                **({"calibration": calibration} if calibration else {}),
                **self.best.facts(),
                **kept,
            }
        )
        self.write_pages(self.folder)

    def _keep_wrong(self, trainer: ClientTrainer, test: ImageSet | None) -> Calibration | None:
        """Keep test images that went wrong, and return what the probabilities tell; None without images."""
        own = self.experiment.dataset
        if test is None or own.test is None or self.experiment.personal:
            return None
        measured = Measured(
            seen=test,
            pictures=own.test.images,
            classes=own.classes,
            train_counts=self._totals,
            sharpness=self._probability_scale(),
        )
        return keep_wrong(self.folder, trainer, measured)


def _full_state(model: torch.nn.Module) -> State:
    """Return all tensors of a model on the CPU; they may share its memory."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _context(toml: str) -> Context:
    return Context(
        run_id=1, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={"experiment": toml}
    )
