"""How many copies of a large model a round needs: 100 million parameters, 50 clients, memory over time.

    python benchmarks/big_model.py [--parameters 100000000] [--clients 50] [--rounds 2] [--engine serial]

A plain network of two hidden layers whose activations are small beside its weights; every client takes one
step of SGD on one image, so that the time goes where the memory goes: receiving, updating, sending, summing.
The memory of the driver and of the whole process tree is drawn in units of one model, above what the process
held when everything was imported and the data were read. Table, picture and raw figures go to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from timeline import Sample, Timeline, memory
from torch import nn

from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
FACT_PREFIX = "FACT "


def wide(*, num_classes: int, in_channels: int, image_size: tuple[int, int], parameters: int) -> nn.Module:
    """Return an MLP inputs -> h -> h -> classes with about ``parameters`` parameters."""
    inputs = in_channels * image_size[0] * image_size[1]
    # h^2 + (inputs + classes + 2) h + classes = parameters
    linear = inputs + num_classes + 2
    h = round((-linear + math.sqrt(linear**2 + 4 * (parameters - num_classes))) / 2)
    layers = nn.Linear(inputs, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, num_classes)
    return nn.Sequential(nn.Flatten(), *layers)


def child(options: argparse.Namespace) -> None:
    """Run the federation and print when what begins."""
    import torch

    from fedvision import ExperimentConfig, registry, simulate
    from fedvision.data.sources.arrays import digits
    from fedvision.experiment import Experiment
    from fedvision.libraries import prepare_process
    from fedvision.runs.progress import Silent

    prepare_process()
    torch.set_num_threads(1)
    registry.allow_folder(Path(__file__).parent)
    small = ExperimentConfig.from_dict(experiment(options) | {"model": {"use": "cnn"}})
    Experiment.build(small)
    digits()
    report(phase="imported", base_pss=memory(os.getpid())[0])

    class RoundState(Silent):
        """Prints when the rounds begin and end."""

        def start(self, rounds: int, first_round: int) -> None:
            report(phase="round 1")

        def round_done(self, round: int, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
            stage = f"round {round + 1}" if round < options.rounds else "end"
            report(phase=stage, seconds=seconds["total"], used=len(record["clients"]))

    config = ExperimentConfig.from_dict(experiment(options))
    if options.scratch:
        Path(options.scratch).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        result = simulate(config, engine=options.engine, out=Path(folder) / "run", progress=RoundState())
    count = sum(tensor.numel() for tensor in result.state.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in result.state.values())
    report(phase="over", parameters=count, model_bytes=size)


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    table = {"use": "population", "clients": options.clients, "alpha": 1.0, "mean_images": 1, "max_images": 1}
    return {
        "name": "big-model",
        "seed": options.seed,
        "rounds": options.rounds,
        "checkpoint_every": options.rounds,
        "data": {"use": "digits"},
        "partition": table,
        "model": {"use": "big_model:wide", "parameters": options.parameters},
        "training": {"steps": 1, "batch_size": 1, "lr": 0.01, "device": "cpu"},
        "strategy": {"use": "fedavg"},
        "evaluation": {"every": options.rounds},
    }


def report(**facts: Any) -> None:
    print(FACT_PREFIX + json.dumps(facts), flush=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the federation in a process of its own and return its phases, samples and facts."""
    timeline = Timeline(every=0.5)
    run: dict[str, Any] = {"phases": []}
    begun = time.perf_counter()

    def on_line(line: str) -> None:
        if not line.startswith(FACT_PREFIX):
            print(line)
            return
        facts = json.loads(line.removeprefix(FACT_PREFIX))
        phase, second = facts.pop("phase"), round(time.perf_counter() - begun, 2)
        run["phases"].append({"phase": phase, "second": second, **facts})
        run.update({key: facts[key] for key in ("base_pss", "parameters", "model_bytes") if key in facts})
        print(f"{second:7.1f} s  {phase}", flush=True)

    keys = ("parameters", "clients", "rounds", "engine", "seed", "scratch")
    spelled = [part for key in keys for part in (f"--{key}", str(getattr(options, key)))]
    root, here = Path(__file__).parents[1], Path(__file__).parent
    paths = [str(root), str(here), os.environ.get("PYTHONPATH", "")]
    environment_ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    timeline.run([sys.executable, __file__, "--child", *spelled], environment_, on_line)
    return {**run, "samples": timeline.samples}


def models(run: Mapping[str, Any]) -> tuple[list[float], list[float], list[float]]:
    """Return seconds, and the memory of driver and tree above the beginning in units of one model."""
    start = next(phase["second"] for phase in run["phases"] if phase["phase"] == "imported")
    samples = [Sample(*sample) for sample in run["samples"] if sample[0] >= start]
    base, unit = run["base_pss"], run["model_bytes"]
    return (
        [sample.second - start for sample in samples],
        [(sample.driver_pss - base) / unit for sample in samples],
        [(sample.tree_pss - base) / unit for sample in samples],
    )


def table(store: Mapping[str, Any]) -> str:
    """Return a row for each engine."""
    heads = ["engine", "parameters", "one model", "clients a round", "seconds a round"]
    heads += ["driver's peak, models", "tree's peak, models"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for engine, run in store["runs"].items():
        _, driver, tree = models(run)
        rounds = [phase["seconds"] for phase in run["phases"] if "seconds" in phase]
        used = [phase["used"] for phase in run["phases"] if "used" in phase]
        cells = [engine, f"{run['parameters']:,}", f"{run['model_bytes'] / 1e6:,.0f} MB", str(min(used))]
        cells += [f"{sum(rounds) / len(rounds):.0f}", f"{max(driver):.1f}", f"{max(tree):.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def header(store: Mapping[str, Any]) -> str:
    made, options = store["environment"], store["options"]
    return (
        f"{options['parameters'] / 1e6:,.0f} million parameters, {options['clients']} clients a round, "
        f"one step on one image, FedAvg, seed {options['seed']}\n"
        f"{made['processor']}, {made['cpus']} cores, one thread; torch {made['torch']}, flwr {made['flwr']}, "
        f"numpy {made['numpy']}, Python {made['python']}"
    )


def draw(store: Mapping[str, Any], path: Path) -> None:
    """Write the picture: a panel for each engine."""
    runs = store["runs"]
    with rc_context({"font.size": 11, "svg.fonttype": "path", "svg.hashsalt": "fedvision"}):
        figure = Figure(figsize=(9, 3.2 * len(runs) + 0.6), layout="constrained")
        figure.patch.set_facecolor("white")
        for axes, (engine, run) in zip(
            figure.subplots(len(runs), 1, squeeze=False)[:, 0], runs.items(), strict=True
        ):
            seconds, driver, tree = models(run)
            axes.plot(seconds, tree, color="#d55e00", linewidth=1, label="whole process tree")
            axes.plot(seconds, driver, color="#0072b2", linewidth=1.4, label="driver")
            start = run["phases"][0]["second"]
            for phase in run["phases"][1:-1]:
                axes.axvline(phase["second"] - start, color="#bbbbbb", linewidth=0.8)
                axes.text(phase["second"] - start, 1.0, f" {phase['phase']}", fontsize=8, color="#66666e",
                          transform=axes.get_xaxis_transform(), va="bottom")  # fmt: skip
            axes.set_ylim(0, None)
            axes.set_ylabel(f"{engine}: memory (PSS),\nmodels")
            axes.grid(axis="y", color="#dddddd")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=9, loc="lower right")
        axes.set_xlabel("seconds")
        figure.suptitle(header(store), fontsize=9, x=0.01, ha="left")
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure one engine, keep what other engines took, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--engine", default="serial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", default=tempfile.gettempdir(), help="folder for the run folder")
    parser.add_argument("--name", default="big-model", help="of the files in benchmarks/results/")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    path = RESULTS / f"{options.name}.json"
    fixed = {key: getattr(options, key) for key in ("parameters", "clients", "rounds", "seed")}
    store: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if store.get("options") != fixed:
        store = {"environment": environment("cpu"), "options": fixed, "runs": {}}
    store["runs"][options.engine] = measure(options)
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(store))
    draw(store, path.with_suffix(".svg"))
    print(table(store))
    print(header(store))


if __name__ == "__main__":
    main()
