"""A million clients in the population: what a round costs, and that idle clients cost nothing.

    python benchmarks/population.py [--clients 1000 1000000] [--rounds 50] [--cohort 1000] [--engine serial]

Each population runs in a process of its own: images of Fashion-MNIST (``--data digits`` needs no files) dealt
by ``partition.use = "population"``, the CNN, one step of SGD a client. Memory is that of the whole process
tree, its peak in each round; a smaller population with the same cohort stands beside it, so that the
difference is the price of idle clients. Beside the clients' own work a round has selection and bookkeeping:
messages, sums, records, checkpoint; with workers of their own, that is the driver's processor time. What was
measured is kept after every round; the same command goes on where it was broken off. Table, picture and raw
figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import environments
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from timeline import Timeline, memory

from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0578d")
FIXED = ("rounds", "cohort", "engine", "data", "model", "steps", "seed", "alpha", "mean_images")
"""Options that a file of results has one value of."""
FACT_PREFIX = "FACT "


def child(options: argparse.Namespace) -> None:
    """Run one population and print what is known inside: a line when it is built and one for each round."""
    begun = time.perf_counter()
    import torch

    from fedvision import ExperimentConfig, simulate
    from fedvision.algorithms.base import RoundStrategy
    from fedvision.experiment import Experiment
    from fedvision.runs.progress import Silent
    from fedvision.training.client_trainer import ClientTrainer

    torch.set_num_threads(1)
    config = ExperimentConfig.from_dict(experiment(options, options.child))
    Experiment.build(config)  # once before, so that the second one is timed without imports and decoding
    imported, held = time.perf_counter(), memory(os.getpid())
    federation = Experiment.build(config)
    built = {"import_s": imported - begun, "build_s": time.perf_counter() - imported}
    report(built=True, **built, before_pss=held[0], after_pss=memory(os.getpid())[0])
    del federation

    inside: dict[str, float] = {}
    watch(RoundStrategy, "select", inside)
    if options.engine == "serial":
        watch(ClientTrainer, "train", inside)

    class RoundState(Silent):
        """Prints each round's times; recording and checkpoint are in them."""

        def start(self, rounds: int, first_round: int) -> None:
            self.begun, self.worked = time.perf_counter(), time.thread_time()

        def round_done(self, round: int, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
            took, worked = time.perf_counter() - self.begun, time.thread_time() - self.worked
            facts = {f"{name}_s": inside.pop(name, None) for name in ("select", "train")}
            facts["measured_s"] = seconds["server"] + seconds["local"]
            facts["driver_s"] = worked
            report(
                round=round, clients=len(record["clients"]), images=record["examples"], round_s=took, **facts
            )
            self.begun, self.worked = time.perf_counter(), time.thread_time()

    out = Path(options.runs) / name(options.engine, options.child)
    result = simulate(config, engine=options.engine, out=out, resume=True, progress=RoundState())
    report(
        finished=True,
        scores=result.scores,
        report_bytes=(out / "report.html").stat().st_size,
        split_bytes=(out / "split.json").stat().st_size,
    )


def experiment(options: argparse.Namespace, clients: int) -> dict[str, Any]:
    return {
        "name": "population",
        "seed": options.seed,
        "rounds": options.rounds,
        "data": {"use": options.data},
        "partition": {
            "use": "population",
            "clients": clients,
            "alpha": options.alpha,
            "mean_images": options.mean_images,
        },
        "model": {"use": options.model},
        "training": {"steps": options.steps, "lr": 0.05, "device": "cpu"},
        "strategy": {"use": "fedavg", "fraction": min(1.0, options.cohort / clients)},
        "evaluation": {"every": 10},
    }


def watch(owner: type, method: str, into: dict[str, float]) -> None:
    """Add up the seconds that a method takes."""
    inner: Callable[..., Any] = getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            into[method] = into.get(method, 0.0) + time.perf_counter() - begun

    setattr(owner, method, timed)


def report(**facts: Any) -> None:
    print(FACT_PREFIX + json.dumps(facts), flush=True)


def name(engine: str, clients: int) -> str:
    return f"{engine}-{clients}"


def measure(options: argparse.Namespace, clients: int, store: dict[str, Any]) -> None:
    """Run one population's process, or what is left of its rounds, and record its facts and memory."""
    run = store["runs"].setdefault(name(options.engine, clients), {"clients": clients, "rounds": []})
    timeline = Timeline()
    seen = 0

    def on_line(line: str) -> None:
        nonlocal seen
        if not line.startswith(FACT_PREFIX):
            print(line)
            return
        facts, peak = json.loads(line.removeprefix(FACT_PREFIX)), timeline.peak(seen)
        seen = len(timeline.samples)
        if "round" not in facts:
            run.update(facts)
            seen = seen if "built" in facts else 0
        else:
            row = facts | {key: value for key, value in peak._asdict().items() if key != "second"}
            earlier = [past for past in run["rounds"] if past["round"] < row["round"]]
            run["rounds"] = [*earlier, row]
            print(f"{clients:,} clients, round {row['round']}: {row['round_s']:.1f} s, {mb(row['tree_pss'])}")
        save(options, store)

    command = [sys.executable, __file__, "--child", str(clients), *spelled(options)]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    timeline.run(command, {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}, on_line)


def spelled(options: argparse.Namespace) -> list[str]:
    keys = (*FIXED, "runs")
    return [part for key in keys for part in (f"--{key.replace('_', '-')}", str(getattr(options, key)))]


def mb(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Return the results that are there, or new ones.

    Raises:
        SystemExit: They were measured with other options.
    """
    path = RESULTS / f"{options.name}.json"
    fixed = {key: getattr(options, key) for key in FIXED}
    if not path.exists():
        return {"environment": environment("cpu"), "options": fixed, "runs": {}}
    store: dict[str, Any] = json.loads(path.read_text())
    if store["options"] != fixed:
        raise SystemExit(f"{path} was measured with {store['options']}; give these results another --name")
    return store


def save(options: argparse.Namespace, store: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{options.name}.json"
    path.with_suffix(".part").write_text(json.dumps(store, indent=1))
    path.with_suffix(".part").replace(path)


def overhead(row: Mapping[str, Any]) -> float | None:
    """Return a round's milliseconds beside the clients' work and the measuring, None if unknown.

    Where the clients work in other processes it is what the driver's thread worked, much of it meanwhile.
    """
    if row["train_s"] is None:
        return 1e3 * row["driver_s"] if "driver_s" in row else None
    return 1e3 * (row["round_s"] - row["train_s"] - row["measured_s"])


def table(store: Mapping[str, Any]) -> str:
    """Return a row for each population, medians over its rounds."""
    heads = ["population", "rounds", "clients a round", "built in, ms", "built in, MB", "a round, s"]
    heads += ["selection, ms", "other bookkeeping, ms", "PSS, round 1, MB", "PSS, last, MB", "peak, MB"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for run in store["runs"].values():
        rows = run["rounds"]
        if not rows:
            continue
        select = statistics.median(1e3 * row["select_s"] for row in rows)
        beside = [value for row in rows if (value := overhead(row)) is not None]
        cells = [
            f"{run['clients']:,}",
            len(rows),
            rows[-1]["clients"],
            f"{1e3 * run['build_s']:.0f}",
            f"{(run['after_pss'] - run['before_pss']) / 1e6:.1f}",
            f"{statistics.median(row['round_s'] for row in rows):.1f}",
            f"{select:.1f}",
            f"{statistics.median(beside) - select:.0f}" if beside else "–",
            *(f"{row['tree_pss'] / 1e6:,.0f}" for row in (rows[0], rows[-1])),
            f"{max(row['tree_pss'] for row in rows) / 1e6:,.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def header(store: Mapping[str, Any]) -> str:
    made, options = store["environment"], store["options"]
    return (
        f"{options['cohort']:,} clients a round, {options['model']}, {options['steps']} step(s), "
        f"{options['data']}, engine {options['engine']}, seed {options['seed']}\n"
        f"{made['processor']}, {made['cpus']} cores, one thread; torch {made['torch']}, flwr {made['flwr']}, "
        f"numpy {made['numpy']}, Python {made['python']}"
    )


def draw(store: Mapping[str, Any], path: Path) -> None:
    """Write the picture: memory of the process tree over rounds, and the time beside the clients' work."""
    with rc_context({"font.size": 11, "svg.fonttype": "path", "svg.hashsalt": "fedvision"}):
        figure = Figure(figsize=(9, 6.5), layout="constrained")
        figure.patch.set_facecolor("white")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        for colour, run in zip(COLOURS, store["runs"].values(), strict=False):
            rounds = [row["round"] for row in run["rounds"]]
            label = f"{run['clients']:,} clients"
            for key, style in (("tree_pss", "-"), ("tree_rss", ":")):
                values = [row[key] / 1e6 for row in run["rounds"]]
                named = f"{label}, {key[-3:].upper()}"
                upper.plot(rounds, values, style, color=colour, label=named, marker="o", markersize=3)
            beside = [overhead(row) for row in run["rounds"]]
            lower.plot(rounds, beside, color=colour, label=label, marker="o", markersize=3)
            selects = [1e3 * row["select_s"] for row in run["rounds"]]
            lower.plot(rounds, selects, "--", color=colour, label=f"{label}, selection alone")
        upper.set_ylabel("peak memory of the\nprocess tree, MB")
        lower.set_ylabel("selection and\nbookkeeping, ms")
        lower.set_xlabel("round")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (upper, lower):
            axes.set_ylim(0, None)
            axes.grid(axis="y", color="#dddddd")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=9, ncols=2)
        figure.suptitle(header(store), fontsize=9, x=0.01, ha="left")
        figure.savefig(path, metadata={"Date": None})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--cohort", type=int, default=1000)
    parser.add_argument("--engine", default="serial")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--mean-images", type=float, default=60.0)
    parser.add_argument("--name", default="population", help="of the files in benchmarks/results/")
    parser.add_argument("--runs", default="runs/population", help="folder of the run folders")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, print and draw."""
    options = parse()
    if options.child:
        child(options)
        return
    if options.data == "fashion-mnist":
        os.environ["FEDVISION_DATA"] = str(environments.images())
    store = load(options)
    for clients in options.clients:
        if not store["runs"].get(name(options.engine, clients), {}).get("finished"):
            try:
                measure(options, clients, store)
            except subprocess.CalledProcessError as error:
                raise SystemExit(
                    f"{clients:,} clients: {error}; the same command goes on from here"
                ) from error
    draw(store, RESULTS / f"{options.name}.svg")
    print(table(store))
    print(header(store))


if __name__ == "__main__":
    main()
