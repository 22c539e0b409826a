"""The Python interface to one run: simulate an experiment on this machine."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fedvision import baselines as baseline_names
from fedvision import registry
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, FedVisionError
from fedvision.experiment import Experiment
from fedvision.libraries import load_libraries
from fedvision.stages import stage
from fedvision.types import PluginSpec, Rejection

if TYPE_CHECKING:
    import pandas as pd

    from fedvision.engines.base import Engine
    from fedvision.runs.folder import RunFolder
    from fedvision.runs.progress import Progress
    from fedvision.simulation import Simulation
    from fedvision.types import State


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run left behind."""

    folder: RunFolder
    """The run folder: everything below is also there."""
    rounds: list[dict[str, Any]]
    """One record a round, as in ``rounds.jsonl``; each measurement in the round whose model it is of."""
    state: State
    """The travelling tensors of the final global model."""

    @property
    def scores(self) -> dict[str, float]:
        """The last measured scores: the server's where it has test images, else the clients' together."""
        for record in reversed(self.rounds):
            for view in ("server", "local"):
                if record.get(view):
                    return dict(record[view]["scores"])
        return {}

    @property
    def personal_scores(self) -> dict[str, float]:
        """The last measured scores of clients' personal models; empty where none are beside the global."""
        for record in reversed(self.rounds):
            if record.get("personal"):
                return dict(record["personal"]["scores"])
        return {}

    def frame(self) -> pd.DataFrame:
        """Return the rounds as a data frame: a row a round, a column a figure such as ``server.accuracy``."""
        import pandas as pd

        return pd.DataFrame([_flat(record) for record in self.rounds]).set_index("round")


def simulate(
    experiment: ExperimentConfig | Experiment,
    *,
    engine: str | PluginSpec = "serial",
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    threads: int = 1,
    tensorboard: bool = False,
    mlflow: str = "",
    baselines: Sequence[str] = (),
) -> RunResult:
    """Run a whole federation on this machine and write its run folder.

    Args:
        experiment: The experiment, or what ``Experiment.build`` has made of it.
        engine: ``"serial"``, ``"ray"``, or an engine by ``"module:attr"``; ``PluginSpec(use="ray",
            args={"workers": 4})`` gives it arguments.
        out: The run folder; ``runs/<name>`` (or the next free ``runs/<name>-2``, ...) where it is left out.
        resume: Continue the run in ``out`` from its last checkpoint; a run that is not there is begun.
        progress: Who shows the progress; nobody by default.
        threads: Threads of each process's arithmetic, >= 1. Runs with the same number have the same bits on
            every engine; more than one pays only where cores are idle.
        tensorboard: Also write TensorBoard scalars into the run folder.
        mlflow: Also write them into this MLflow store, a server's URL or a file.
        baselines: What is trained beside the federated run once it is over: ``"local"``, each client alone,
            ``"central"``, all images together. What is there already is not made again.

    Raises:
        ConfigError: The experiment, its data or the run folder is wrong; nothing was written.
        RunError: The run failed after it had started; the last checkpoint is intact.
    """
    names = baseline_names.chosen(baselines)
    built = _built(experiment, with_baselines=bool(names))
    from fedvision.reporting.pages import page_writer
    from fedvision.runs.folder_lock import claimed
    from fedvision.simulation import Simulation

    if threads < 1:
        raise ConfigError(f"threads must be >= 1, not {threads}")
    carrier = registry.build("engine", engine if isinstance(engine, PluginSpec) else PluginSpec(use=engine))
    pages = page_writer(tensorboard=tensorboard, mlflow=mlflow)
    path = Path(out) if out is not None else default_folder(built.config.name, resume)
    stage(f"preparing the run in {path}")
    with claimed(path, "name another one with --out"):
        folder = open_folder(built.config, path, resume)
        run = Simulation(built, folder, progress=progress, write_pages=pages, threads=threads)
        initial = dict(run.state) if names else {}
        with run.interruption, run.stop:
            try:
                state = run.run(carrier)
            except (FedVisionError, KeyboardInterrupt) as error:
                run.mark_failed(error)
                raise
        if names:
            _add_baselines(run, carrier, initial, names)
    return RunResult(folder=folder, rounds=folder.rounds(), state=state)


def check_baselines(configs: Iterable[ExperimentConfig]) -> None:
    """Refuse experiments that have no baselines.

    Raises:
        ConfigError: One of them trains nothing, or has personal tensors.
    """
    load_libraries()
    from fedvision.baselines.runner import check

    for config in configs:
        check(config)


def _add_baselines(run: Simulation, engine: Engine, initial: State, names: Sequence[str]) -> None:
    """Make a run's baselines, and write what they tell into its summary and its report."""
    from fedvision.baselines.gains import summary
    from fedvision.baselines.runner import add_baselines

    add_baselines(run, engine, initial, names)
    run.folder.write_summary({**run.folder.summary(), "baselines": summary(run.folder)})
    run.write_pages(run.folder)


def _built(experiment: ExperimentConfig | Experiment, *, with_baselines: bool) -> Experiment:
    """Return an experiment built; what baselines cannot be of is refused as early as it is known.

    Raises:
        ConfigError: The experiment is wrong, or none that baselines can be of.
    """
    if with_baselines:
        check_baselines([experiment if isinstance(experiment, ExperimentConfig) else experiment.config])
    built = Experiment.build(experiment) if isinstance(experiment, ExperimentConfig) else experiment
    if with_baselines:
        from fedvision.baselines.runner import check_built

        check_built(built)
    return built


def open_folder(config: ExperimentConfig, out: str | Path | None, resume: bool) -> RunFolder:
    """Create the run folder, or open the one to be continued.

    Raises:
        RunFolderError: It is there and not to be resumed, is another experiment's, or cannot be written.
    """
    from fedvision.runs.folder import RunFolder
    from fedvision.runs.stop_request import withdraw

    path = Path(out) if out is not None else default_folder(config.name, resume)
    withdraw(path)  # made of a process that was killed: whoever opens a folder holds its lock
    folder = RunFolder.resume(path, config) if resume else RunFolder.create(path, config)
    plugins = registry.allowed_folder()
    folder.note_invocation({"folder": os.getcwd(), "modules": [] if plugins is None else [str(plugins)]})
    return folder


def default_folder(name: str, resume: bool) -> Path:
    """Return ``runs/<name>``; for a new run the first of ``<name>``, ``<name>-2``, ... that is free.

    That one is made at once: of two commands that are given together each has a folder of its own.
    """
    path = Path("runs") / name
    for number in itertools.count(2):
        if resume:
            break
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            path = Path("runs") / f"{name}-{number}"
            continue
        except OSError:
            pass  # whoever writes the run there says why it cannot be
        break
    return path


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round's scalar figures with dotted names."""
    row: dict[str, Any] = {key: value for key, value in record.items() if isinstance(value, int | float)}
    row |= {f"bytes.{key}": value for key, value in record.get("bytes", {}).items()}
    for view in ("server", "local", "personal"):
        facts = record.get(view) or {}
        row |= {f"{view}.loss": facts["loss"]} if facts else {}
        row |= {f"{view}.{key}": value for key, value in facts.get("scores", {}).items()}
    row["clients"] = len(record["clients"])
    row |= {kind: sum(item["kind"] == kind for item in record["refused"]) for kind in get_args(Rejection)}
    return row
