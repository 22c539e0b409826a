"""The command line: parses, calls, prints.

Exit codes: 0 done, 1 the run failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision import __version__, log_format, memory, registry, stages, streams
from fedvision.baselines import chosen
from fedvision.cli import (
    adjust,
    approve,
    card,
    certificates,
    closed_form,
    compress,
    deployment,
    doctor,
    explain,
    export,
    generate,
    model,
    new,
    queue,
    runs,
    watch,
)
from fedvision.cli.announcement import announce
from fedvision.errors import ConfigError, FedVisionError, RunError, RunFolderError, first_line
from fedvision.families import family_of
from fedvision.interruption import deafen, treat_termination_as_ctrl_c
from fedvision.streams import complain, show
from fedvision.types import PluginSpec

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

    from fedvision.sweep import Sweep

INTERRUPTED = 130
VERBS = {
    "simulate, on this machine": ("simulate",),
    "deploy, across machines": ("server", "submit", "client", "approve"),
    "operate": ("runs", "status", "stop", "audit", "queue"),
    "look at": ("inspect", "watch", "report", "list"),
    "use a model": (
        "predict",
        "evaluate",
        "explain",
        "card",
        "export",
        "adjust",
        "generate",
        "prune",
        "versions",
        "unlearn",
        "include",
        "request-sums",
        "sums",
    ),
    "set up": ("new", "certificates", "doctor"),
}
"""The verbs by what they are for."""
_AGAIN = "the same command with --resume goes on from the last round"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    streams.prepare()
    options = _parsed(argv)
    log_format.use(getattr(options, "log_format", "text"))
    try:
        options.call(options)
    except ConfigError as error:
        complain(f"fedvision: {_placed(error, options)}", level="error", kind="error")
        return 2
    except FedVisionError as error:
        complain(f"fedvision: {error}", level="error", kind="error")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        complain(
            f"fedvision: this machine has too little memory ({first_line(error)}); take smaller images, a "
            "smaller network or fewer clients",
            level="error",
            kind="error",
        )
        return 1
    except KeyboardInterrupt:
        if argv is None:
            deafen()
        again = getattr(options, "again", _AGAIN)
        complain(f"\nfedvision: stopped; {again}", level="warning", kind="stopped")
        return INTERRUPTED
    finally:
        stages.unfollow()
        log_format.use("text")
    return 0


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command.

    Words behind an option go on with the list that a verb names as ``more``: of a list that may be empty
    argparse would refuse them.
    """
    known = parser()
    options, rest = known.parse_known_args(argv)
    more = getattr(options, "more", "")
    if rest and (not more or any(word.startswith("-") for word in rest)):
        known.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        setattr(options, more, [*getattr(options, more), *rest])
    return options


def _placed(error: ConfigError, options: argparse.Namespace) -> str:
    """Return the error's sentence with the experiment's file before it, unless it is about something else."""
    file = getattr(options, "experiment", None)
    complete = str(error).startswith((f"{file}: ", "--", "the SuperLink "))
    if file is None or complete or isinstance(error, RunFolderError):
        return str(error)
    return f"{file}: {error}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="fedvision",
        description="Federated learning for images.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedvision {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB", help="one of those below")

    _add_simulate(verbs)
    report = verbs.add_parser("report", description="make the report of a run, or compare several")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    report.add_argument("--out", type=Path, help="file of the comparison (default: comparison.html)")
    report.set_defaults(call=_report)

    inspect = verbs.add_parser("inspect", description="show clients x classes and costs before training")
    _experiment(inspect)
    inspect.set_defaults(call=_inspect)
    watch.add(verbs)

    model.add(verbs)
    adjust.add(verbs)
    generate.add(verbs)
    compress.add(verbs)
    export.add(verbs)
    explain.add(verbs)
    closed_form.add(verbs)
    card.add(verbs)
    deployment.add(verbs)
    approve.add(verbs)
    certificates.add(verbs)
    doctor.add(verbs)
    runs.add(verbs)
    queue.add(verbs)

    names = verbs.add_parser("list", description="show the options of `use =`")
    names.add_argument("kind", nargs="?", choices=sorted({*registry.BUILTINS, *_ALSO}), help="only this kind")
    names.set_defaults(call=_list)
    new.add(verbs)
    parser.epilog = _by_purpose(verbs.choices)
    return parser


def _add_simulate(verbs: Verbs) -> None:
    simulate = verbs.add_parser("simulate", description="run a whole federation on this machine")
    _experiment(simulate)
    simulate.add_argument("--engine", default="auto", help="auto, serial, vectorized or ray (default: auto)")
    simulate.add_argument("--workers", type=int, help="processes (default: one a core, or by GPU memory)")
    simulate.add_argument("--address", help="Ray cluster to join: auto, HOST:PORT or ray://HOST:PORT")
    simulate.add_argument("--gpus-per-worker", type=float, help="share of a GPU a worker (default: measured)")
    simulate.add_argument(
        "--stack", type=int, help="clients that vectorized trains at once (default: measured)"
    )
    simulate.add_argument("--inner", help="engine in a ray worker: serial or vectorized (default: serial)")
    simulate.add_argument("--out", type=Path, help="run folder (default: runs/NAME)")
    simulate.add_argument("--resume", action="store_true", help="go on from the run folder's last checkpoint")
    simulate.add_argument(
        "--jobs", type=int, help="runs of a sweep at a time (default: by cores and memory; on a GPU 1)"
    )
    simulate.add_argument("--threads", type=int, default=1, help="threads of a process (default: 1)")
    simulate.add_argument("--tensorboard", action="store_true", help="also write TensorBoard scalars")
    simulate.add_argument(
        "--mlflow", default="", metavar="STORE", help="also write to MLflow, a URL or a file"
    )
    simulate.add_argument(
        "--baselines",
        metavar="NAMES",
        help="also train each client alone (local), all images together (central), or both: local,central",
    )
    simulate.set_defaults(call=_simulate)


def _by_purpose(verbs: Mapping[str, argparse.ArgumentParser]) -> str:
    """Return the verbs with what they do, under what they are for."""
    lines = []
    for purpose, names in VERBS.items():
        lines += [f"{purpose}:", *(f"  {name:<14}{verbs[name].description}" for name in names), ""]
    return "\n".join([*lines, "fedvision VERB --help shows a verb's options."])


def _experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", type=Path, nargs="?", metavar="EXPERIMENT", help="TOML file")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="such as training.lr=0.1",
    )


def _is_experiment(path: Path) -> bool:
    """Return whether a TOML file names data and no server: one of a client's machine does."""
    try:
        keys = tomllib.loads(path.read_text()).keys()
    except (OSError, ValueError):
        return False
    return "data" in keys and "superlink" not in keys


def _file(options: argparse.Namespace) -> Path:
    """Return the experiment's file.

    Raises:
        ConfigError: None was named; the message names a command to try.
    """
    if options.experiment is None:
        near = sorted(Path().glob("*.toml")) + sorted(Path().glob("*/*.toml"))
        here = [str(path) for path in near if _is_experiment(path)]
        found = f"here are {', '.join(here[:5])}" if here else "`fedvision new NAME` writes one"
        raise ConfigError(
            f"name an experiment's TOML file; {found}, and `fedvision list` shows what it may use"
        )
    file: Path = options.experiment
    return file


def _simulate(options: argparse.Namespace) -> None:
    treat_termination_as_ctrl_c()
    baselines = chosen([] if options.baselines is None else options.baselines.split(","))
    sweep = _sweep(options)
    from fedvision.sweep_runner import simulate_sweep

    for notice in sweep.notices:
        complain(f"note: {notice}")
    done = simulate_sweep(
        sweep,
        engine=_engine(options),
        out=options.out,
        resume=options.resume,
        jobs=_jobs(options),
        progress=True,
        threads=options.threads,
        tensorboard=options.tensorboard,
        mlflow=options.mlflow,
        baselines=baselines,
    )
    from fedvision.reporting import render

    folders = [result.folder for result in done.results.values()]
    if done.comparison:
        page, table = done.comparison, render.comparison_table(folders)
        show(f"{table}\nreport: {page}", recorded=str(page))
    elif folders:
        page, table = folders[0].path / "report.html", render.run_table(folders[0])
        show(f"{table}\nreport: {page}", recorded=str(page))
    if done.failures:
        raise RunError(
            "; ".join(f"{label}: {error}".removeprefix(": ") for label, error in done.failures.items())
        )


def _sweep(options: argparse.Namespace) -> Sweep:
    """Read the experiment's file, and say so before anything that takes seconds."""
    from fedvision.formatting import plural
    from fedvision.sweep import load_sweep

    file = _file(options)
    registry.allow_folder(file.parent)
    sweep = load_sweep(file, options.overrides)
    found = list(sweep.experiments.values())
    size = plural(len(found), "experiment") if len(found) > 1 else plural(found[0].rounds, "round")
    announce(f"{file}, {size}")
    return sweep


def _jobs(options: argparse.Namespace) -> int:
    """Return the runs at a time; 0 for as many as pay."""
    jobs: int | None = options.jobs
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs must be >= 1, not {jobs}")
    return jobs or 0


def _engine(options: argparse.Namespace) -> PluginSpec:
    names = ("workers", "address", "gpus_per_worker", "stack", "inner")
    given = {name: getattr(options, name) for name in names}
    return PluginSpec(use=options.engine, args={k: v for k, v in given.items() if v is not None})


def _report(options: argparse.Namespace) -> None:
    from fedvision.reporting import render
    from fedvision.reporting.comparison import write_comparison
    from fedvision.reporting.html import write_report
    from fedvision.runs.folder import RunFolder

    folders = [RunFolder.read(path) for path in options.runs]
    if len(folders) == 1:
        page, table = write_report(folders[0]), render.run_table(folders[0])
    else:
        table = render.comparison_table(folders)
        page = write_comparison(folders, options.out or Path("comparison.html"))
    show(f"{table}\nreport: {page}", recorded=str(page))


def _inspect(options: argparse.Namespace) -> None:
    experiments = _sweep(options).experiments
    from fedvision.experiment_builder import ExperimentBuilder
    from fedvision.libraries import load_libraries

    load_libraries()
    from fedvision.reporting.inspect_experiment import inspect_experiment

    builder = ExperimentBuilder(experiments)
    for label in experiments:
        if label:
            show(f"{label}:")
        show(inspect_experiment(builder.take(label)))


def _list(options: argparse.Namespace) -> None:
    for kind in [_ALSO.get(options.kind, options.kind)] if options.kind else sorted(registry.BUILTINS):
        rows = [(name, *_option(kind, name, origin)) for name, origin in sorted(registry.names(kind).items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows
        )
        show("\n".join([f"{kind}:", *(f"  {line.rstrip()}" for line in lines)]))


def _option(kind: str, name: str, origin: str) -> tuple[str, str]:
    """Return a method's paper, and where an option is found."""
    found = family_of(kind, name)
    others = f", and {found[0].others}" if found and found[0].others else ""
    builtin = registry.BUILTINS[kind].get(name)
    return builtin.paper if builtin else "", origin + others


_ALSO = {"algorithm": "strategy"}
"""Kinds by another word: the two halves of an algorithm are named together, in ``[strategy]``."""


if __name__ == "__main__":
    sys.exit(main())
