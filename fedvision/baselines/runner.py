"""Makes the baselines of a simulated run that is over, beside it in its folder."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from safetensors.torch import load_file

from fedvision.baselines.alone import LoneHosts, LoneTraining, on_own_images, on_test_images
from fedvision.baselines.budget import Budget, Work, central_budget, local_budget
from fedvision.baselines.views import view
from fedvision.config import ExperimentConfig
from fedvision.data.partition.split import Indices, Split
from fedvision.engines.base import Engine
from fedvision.errors import ConfigError, RunError
from fedvision.experiment import Experiment
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.strategy import build_strategy
from fedvision.formatting import plural
from fedvision.runs.baseline_folder import BaselineFolder
from fedvision.runs.folder import RunFolder
from fedvision.server.central_evaluation import evaluate_centrally
from fedvision.server.checks import with_personal
from fedvision.server.scores import Scores
from fedvision.simulation import Simulation
from fedvision.stages import stage
from fedvision.training.client_trainer import probability_scale
from fedvision.training.evaluate import Evaluation
from fedvision.types import PluginSpec, State

_SECONDS = 10.0
"""Between two lines on how far a baseline is."""


def check(config: ExperimentConfig) -> None:
    """Refuse an experiment beside which training alone has no meaning.

    Raises:
        ConfigError: Its clients do not train, or keep a part of the model to themselves.
    """
    strategy = build_strategy(config.strategy, seed=config.seed)
    if not getattr(strategy, "trains", True):
        raise ConfigError(
            f"--baselines: [strategy] use = {config.strategy.use!r} trains nothing, so there is "
            "no budget of training to compare by; leave --baselines out"
        )
    if with_personal(config, strategy).model.personal:
        own = bool(config.model.personal)
        raise ConfigError(_personal("model.personal" if own else f"[strategy] use = {config.strategy.use!r}"))


def check_built(experiment: Experiment) -> None:
    """Refuse an experiment of which tensors that training changes stay on the clients.

    Raises:
        ConfigError: There are such.
    """
    if experiment.personal:
        raise ConfigError(_personal(f"model.shared = {experiment.config.model.shared!r}"))


def _personal(key: str) -> str:
    return (
        f"--baselines: with {key} tensors stay on the clients, and there is no one federated model to "
        "compare theirs with; leave --baselines out"
    )


def add_baselines(run: Simulation, engine: Engine, initial: State, names: Sequence[str]) -> None:
    """Make what is missing of a run's baselines.

    Args:
        run: A run that is over.
        engine: Carries messages.
        initial: The travelling tensors with which the run began.
        names: As ``baselines.chosen`` returns them.

    Raises:
        RunError: No client could be trained alone.
        RecordError: The folder cannot be written.
    """
    baselines = _Baselines(run, engine, initial)
    with run.interruption, run.progress:
        if "central" in names:
            baselines.central()
        if "local" in names or run.config.evaluation.holdout:
            baselines.clients(names)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What a baseline is to be made of."""

    place: BaselineFolder
    budget: Budget
    split: Split


class _Baselines:
    """The baselines of one run."""

    def __init__(self, run: Simulation, engine: Engine, initial: State) -> None:
        self.run, self.engine, self.initial = run, engine, initial
        self.hosts, self.split = run.host_factory, run.host_factory.split
        self.work = Work.of(run.folder.rounds())
        test = self.hosts.dataset.test
        self.images = 0 if test is None else len(test)
        self.counts = self.split.distinct.tolist()

    def central(self) -> None:
        """Train one client that has the training images of all, as far as it is not done."""
        union = _union(self.split)
        budget = central_budget(self.run.config.training, self.work, images=len(union))
        task = self._begun("central", budget, replace(self.split, clients=(union,), held=()), len(union))
        if task.place.facts()["status"] != "begun":
            return
        hosts = self._hosts(task)

        def measured(states: Mapping[int, State]) -> Iterator[tuple[int, dict[str, Any]]]:
            for client, state in states.items():
                self._write_model(task, state)
                server = self._measure_centrally(grid, registry, state) if self.images else {}
                yield client, {"server": server}

        with self.engine.open(hosts, on_notice=self._say("central")) as grid:
            registry = hosts.client_registry()
            self._alone(grid, registry, task).run([0], measured)
        line = task.place.clients()[0]
        if why := line.get("failed"):
            raise RunError(f"the baseline central could not be trained: {why}")
        status = "trained" if self.run.config.evaluation.holdout else "finished"
        task.place.note(status, server=line["server"])

    def clients(self, names: Sequence[str]) -> None:
        """Train each client alone, and measure all models on what clients hold out, as far as not done."""
        shown = [int(client) for client in self.split.shown]
        images = sum(map(self.split.size, shown)) / len(shown)
        budget = local_budget(
            self.run.config.training,
            self.work,
            clients=len(self.split.clients),
            images=images * len(self.split.clients),
        )
        local = self._begun("local", budget, self.split, round(images)) if "local" in names else None
        others = self._held_out(names)
        if not others and (local is None or local.place.finished):
            return
        hosts = self._hosts(local or _Task(place=self._place("federated"), budget=budget, split=self.split))
        with self.engine.open(hosts, on_notice=self._say("local")) as grid:
            registry = hosts.client_registry()
            for place, state in others:
                self._measure_held_out(grid, registry, place, state, shown)
            if local is not None and not local.place.finished:
                self._train_locally(grid, registry, local, shown)

    def _train_locally(
        self, grid: Grid, registry: ClientRegistry, task: _Task, clients: Sequence[int]
    ) -> None:
        def measured(states: Mapping[int, State]) -> Iterator[tuple[int, dict[str, Any]]]:
            server = on_test_images(grid, registry, states, self.images) if self.images else {}
            local = {}
            if self.run.config.evaluation.holdout:
                local = on_own_images(grid, registry, states, self.run.done)
            for client in states:
                yield (
                    client,
                    {
                        "images": self.split.size(client),
                        "server": self._view(server.get(client)),
                        "local": self._view(local.get(client)),
                    },
                )

        self._alone(grid, registry, task).run(clients, measured)
        lines = task.place.clients()
        if reasons := [line["failed"] for line in lines.values() if "failed" in line]:
            if len(reasons) == len(lines):
                raise RunError(f"the baseline local: no client could be trained alone: {reasons[0]}")
            self.run.note(
                f"the baseline local is without {plural(len(reasons), 'client')} whose training failed: "
                f"{reasons[0]}"
            )
        task.place.finish()

    def _held_out(self, names: Sequence[str]) -> list[tuple[BaselineFolder, State]]:
        """Return the models that are still to be measured on what clients hold out, with their places."""
        if not self.run.config.evaluation.holdout:
            return []
        left = []
        federated = self._place("federated")
        final = hashlib.sha256((self.run.folder.path / "model.safetensors").read_bytes()).hexdigest()
        federated.begin({**self._of(), "model": final})
        if not federated.finished:
            left.append((federated, self.run.state))
        central = self._place("central")
        if "central" in names and not central.finished:
            model = load_file(central.path / "model.safetensors")
            left.append((central, {name: model[name] for name in self.initial}))
        return left

    def _measure_held_out(
        self,
        grid: Grid,
        registry: ClientRegistry,
        place: BaselineFolder,
        state: State,
        clients: Sequence[int],
    ) -> None:
        stage(f"measuring {place.path.name} on what clients hold out")
        found = on_own_images(grid, registry, dict.fromkeys(clients, state), self.run.done)
        self.run.interruption.check()
        place.write_clients({"client": client, "local": self._view(found.get(client))} for client in clients)
        place.finish()

    def _measure_centrally(self, grid: Grid, registry: ClientRegistry, state: State) -> dict[str, Any]:
        config = self.run.config
        found = evaluate_centrally(
            grid, registry, state, images=self.images, batch_size=config.evaluation.batch_size
        )
        return Scores(self.run.experiment.task, registry, self.run.experiment.metrics).total([found])

    def _write_model(self, task: _Task, state: State) -> None:
        scale = probability_scale(self.run.config, len(self.hosts.dataset.classes))
        described = replace(self.run.description(), rounds=len(task.budget.rounds), probability_scale=scale)
        RunFolder(task.place.path).write_model(self.run.whole(state), described)

    def _view(self, found: Evaluation | None) -> dict[str, Any] | None:
        experiment = self.run.experiment
        if found is None:
            return None
        return view(experiment.task, found, self.counts, experiment.metrics)

    def _begun(self, name: str, budget: Budget, split: Split, images: int) -> _Task:
        place, budgeted = self._place(name), {"rounds": budget.rounds, "passes": budget.passes(images)}
        budgeted |= {"epochs": budget.training.epochs, "steps": budget.training.steps}
        if place.begin({**self._of(), **_plain(budgeted)}):
            self.run.note(
                f"the baseline {name} in {place.path} was of another state of this run: it is made anew"
            )
        return _Task(place=place, budget=budget, split=split)

    def _of(self) -> dict[str, Any]:
        text = self.run.folder.config_text()
        experiment = hashlib.sha256(text.encode()).hexdigest()
        return {"experiment": experiment, "split": self.split.digest, "rounds_done": self.run.done}

    def _place(self, name: str) -> BaselineFolder:
        return BaselineFolder(self.run.folder.path, name)

    def _hosts(self, task: _Task) -> LoneHosts:
        return LoneHosts(
            config=_alone(self.hosts.config, task.budget),
            dataset=self.hosts.dataset,
            split=task.split,
            model=self.hosts.model,
            memory=(task.place.path / "clients").resolve(),
            threads=self.hosts.threads,
        )

    def _alone(self, grid: Grid, registry: ClientRegistry, task: _Task) -> LoneTraining:
        name = task.place.path.name
        return LoneTraining(
            grid=grid,
            client_registry=registry,
            place=task.place,
            rounds=task.budget.rounds,
            initial=self.initial,
            checkpoint_every=self.run.config.checkpoint_every,
            check=self.run.interruption.check,
            on_training=_shown(name, len(task.budget.rounds)),
        )

    def _say(self, name: str) -> Any:
        return lambda sentence: self.run.progress.note(f"baseline {name}: {sentence}")


def _shown(name: str, rounds: int) -> Callable[[int, int, int], None]:
    """Return what shows how far a baseline is: as a group of clients begins, and every ten seconds."""
    last = -math.inf

    def show(done: int, total: int, place: int) -> None:
        nonlocal last
        if place == 0 or time.monotonic() - last > _SECONDS:
            last = time.monotonic()
            of = f"{done} of {plural(total, 'client')} done, " if total > 1 else ""
            stage(f"baseline {name}: {of}round {place + 1} of {rounds}")

    return show


def _alone(config: ExperimentConfig, budget: Budget) -> ExperimentConfig:
    """Return the experiment of a client that knows of no others: nothing but its own images decides."""
    return replace(
        config,
        training=replace(config.training, epochs=budget.training.epochs, steps=budget.training.steps),
        strategy=PluginSpec(use="fedavg"),
        update=(),
        loss=replace(config.loss, prior="local"),
    )


def _union(split: Split) -> Indices:
    """Return the numbers of all images on which a client trains, sorted."""
    if isinstance(split.clients, tuple):
        return np.unique(np.concatenate(split.clients))
    retained, held = split.clients.retained, split.clients.held
    return np.sort(retained if held is None else retained[~held])


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts as JSON gives them back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}
