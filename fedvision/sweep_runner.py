"""The Python interface to a sweep: run its experiments, several at a time where asked, and compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fedvision import cores, memory, parallel_runs
from fedvision.api import RunResult, check_baselines, default_folder, simulate
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, RunError
from fedvision.experiment_builder import ExperimentBuilder
from fedvision.formatting import plural
from fedvision.stages import stage
from fedvision.sweep import Sweep
from fedvision.types import PluginSpec, State

if TYPE_CHECKING:
    from fedvision.runs.folder import RunFolder
    from fedvision.runs.progress import Progress

PROCESS_BYTES = 600 << 20
"""Main memory of a run's process beside images and model: PyTorch, Flower, activations, the report."""
MODEL_COPIES = 8
"""Models that a run holds at a time: global, local, gradients, optimiser, sums, message buffers."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What the experiments of a sweep left behind."""

    results: Mapping[str, RunResult]
    """By label: the runs that reached their end."""
    failures: Mapping[str, RunError]
    """By label: why the others did not."""
    comparison: Path | None
    """The page that compares the runs; None where there are fewer than two."""


def simulate_sweep(
    sweep: Sweep,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    progress: bool | TextIO = False,
    engine: str | PluginSpec = "serial",
    **options: Any,
) -> SweepResult:
    """Run every experiment of a sweep, each in a folder of its own, and compare them.

    A run has the same bits whether others go on beside it or not.

    Args:
        sweep: As ``load_sweep`` reads it; a sweep of one is that one experiment.
        out: The sweep's folder, with a run folder for each label; ``runs/<name>`` where it is left out.
        resume: Continue what is there; experiments that are done are not run again.
        jobs: Runs at a time, each in a process of its own; 0 for as many as cores and memory allow where
            runs train in one process on the CPU, else 1. A Python program that asks for more than one guards
            its own start by ``if __name__ == "__main__"``, as for ``multiprocessing``.
        progress: Whether the progress is shown on stderr, or the stream it is shown on.
        engine: As ``simulate`` takes it.
        options: Passed on to ``simulate``.

    Raises:
        ConfigError: An experiment is wrong; none was begun.
    """
    if jobs < 0:
        raise ConfigError(f"jobs must be >= 0, not {jobs}")
    spec = engine if isinstance(engine, PluginSpec) else PluginSpec(use=engine)
    most = min(jobs or _useful(sweep.experiments, spec, options.get("threads", 1)), len(sweep.experiments))
    if most > 1:
        parallel_runs.prepare()
    if options.get("baselines"):
        check_baselines(sweep.experiments.values())
    builder = ExperimentBuilder(sweep.experiments)
    builder.check()
    if store := options.get("mlflow"):  # made once: two processes would make it at the same time
        from fedvision.reporting.mlflow_store import open_store

        open_store(store)
    if not jobs and most > 1:
        devices = {config.training.device for config in sweep.experiments.values()}
        most = _affordable(most, builder.sizes.values()) if _on_processor(devices) else 1
    base = Path(out) if out is not None else default_folder(sweep.name, resume)
    options |= {"resume": resume}
    if most > 1:
        del builder
        results, failures = _side_by_side(sweep, base, most, progress, _shared(spec, most), options)
    else:
        results, failures = _one_by_one(sweep, base, builder, progress, {"engine": spec, **options})
    return SweepResult(results=results, failures=failures, comparison=_compare(base, results))


def _one_by_one(
    sweep: Sweep, base: Path, builder: ExperimentBuilder, progress: bool | TextIO, options: dict[str, Any]
) -> tuple[dict[str, RunResult], dict[str, RunError]]:
    results: dict[str, RunResult] = {}
    failures: dict[str, RunError] = {}
    for number, label in enumerate(sweep.experiments, 1):
        shown = _progress(progress)
        if shown and label:
            shown.note(f"{label} ({number} of {len(sweep.experiments)})")
        try:
            results[label] = simulate(builder.take(label), out=base / label, progress=shown, **options)
        except RunError as error:
            failures[label] = error
    return results, failures


def _side_by_side(
    sweep: Sweep,
    base: Path,
    jobs: int,
    progress: bool | TextIO,
    engine: PluginSpec,
    options: dict[str, Any],
) -> tuple[dict[str, RunResult], dict[str, RunError]]:
    from fedvision.runs.displays import ParallelDisplays
    from fedvision.runs.folder import RunFolder

    options = {"engine": engine, **options}
    runs = [
        parallel_runs.PlannedRun(label=label, config=config, out=base / label, options=options)
        for label, config in sweep.experiments.items()
    ]
    stage(f"running {plural(len(runs), 'experiment')}, {jobs} at a time")
    if progress:
        with ParallelDisplays(None if progress is True else progress) as displays:
            outcomes = parallel_runs.run_all(runs, jobs, displays)
    else:
        outcomes = parallel_runs.run_all(runs, jobs)
    results = {}
    for label in (label for label, error in outcomes.items() if error is None):
        folder = RunFolder.read(base / label)
        results[label] = RunResult(folder=folder, rounds=folder.rounds(), state=_final_state(folder))
    return results, {label: error for label, error in outcomes.items() if isinstance(error, RunError)}


def _final_state(folder: RunFolder) -> State:
    checkpoint = folder.checkpoints.load()
    return {} if checkpoint is None else dict(checkpoint.tensors["model"])


def _progress(wanted: bool | TextIO) -> Progress | None:
    from fedvision.runs.progress import Progress

    if not wanted:
        return None
    return Progress(None if wanted is True else wanted)


def _useful(experiments: Mapping[str, ExperimentConfig], engine: PluginSpec, threads: int) -> int:
    """Return how many runs the cores could feed at a time.

    A run that has workers of its own, or trains on a GPU, leaves nothing for another one.
    """
    if len(experiments) < 2 or engine.use not in ("auto", "serial") or engine.args.get("workers"):
        return 1
    if any(config.training.device not in ("auto", "cpu") for config in experiments.values()):
        return 1
    return max(1, cores.available() // max(1, threads))


def _on_processor(devices: Set[str]) -> bool:
    """Return whether devices, each ``"auto"`` or ``"cpu"``, are this machine's processor."""
    from fedvision.devices import choose_device

    return "auto" not in devices or choose_device("auto").type == "cpu"


def _affordable(jobs: int, sizes: Iterable[tuple[int, int]]) -> int:
    """Return how many runs memory holds at a time.

    Args:
        jobs: Runs that the cores could feed.
        sizes: Bytes of each experiment's data and model.
    """
    free = memory.available()
    largest = max(data + MODEL_COPIES * model for data, model in sizes)
    return jobs if free is None else max(1, min(jobs, free // (PROCESS_BYTES + largest)))


def _shared(engine: PluginSpec, jobs: int) -> PluginSpec:
    """Return the engine with its part of the cores."""
    if engine.use != "auto" or engine.args.get("workers"):
        return engine
    return PluginSpec(use="auto", args={**engine.args, "workers": max(1, cores.available() // jobs)})


def _compare(base: Path, results: Mapping[str, RunResult]) -> Path | None:
    from fedvision.reporting.comparison import write_comparison

    if len(results) < 2:
        return None
    return write_comparison([result.folder for result in results.values()], base / "comparison.html")
