"""What a round costs beside its training across machines: ours and stock Flower's deployment in turn.

    python benchmarks/deployment.py [--models small] [--turns 2] [--only rounds|large|adapters] [--out DIR]

Two clients and a server on this machine's loopback, TLS, a key for each client, a database. Both sides build
the same model (``small``: a convolutional network of 11 tensors, ``cnn``: one of 8, ``resnet18``: 62 and its
float buffers) and train it by one step on two images of 8x8. What is counted is from the end of a round to
the end of the next, less the work of the slower client (decode, one step, encode): transport, checks, sum,
checkpoint. The first round, which loads libraries,
is left out. Ours and stock take turns, so that a busy spell of the machine falls on both.

``large`` sends a model of 100 million parameters (400 MB) for two rounds, compares its bits with a simulation
and notes every process's memory over time: private bytes (PSS of anonymous memory) and with mapped files.
``adapters`` does the same with a ViT-B/16 of random weights, of which each client has its own file; adapters
of rank 8 in its attention are trained, on two images of 224 x 224 a step.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from deployment_plots import draw_memory, draw_rounds
from stock_flower import stock

from fedvision.runs.environment import environment

NAMES = ("north", "south")
PUBLIC, PRIVATE = "localhost:28443", "127.0.0.1:28000"
WEIGHTS = "weights.safetensors"
MODELS = {
    "small": {"use": "own_models:small"},
    "cnn": {"use": "cnn", "width": 4, "dense": 8},
    "resnet18": {"use": "resnet18"},
    "large": {"use": "own_models:wide"},
    "adapters": {
        "use": "torchvision/vit_b_16",
        "train": "lora",
        "lora": {"rank": 8, "targets": ["*.self_attention*"]},
        "weights": WEIGHTS,
    },
}
FEW = 20
"""Images for training and as many for the test of a large network."""
COLOUR = {"size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
OWN_MODELS = """
from torch import nn

def small(*, num_classes, in_channels, image_size):
    pixels = image_size[0] * image_size[1]
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * pixels, 8), nn.ReLU(), nn.Linear(8, num_classes),
    )

def wide(*, num_classes, in_channels, image_size):
    pixels = in_channels * image_size[0] * image_size[1]
    hidden = 100_000_000 // (pixels + num_classes)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.Linear(hidden, num_classes))
"""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
}


RoundState = list[tuple[float, float]]
"""Seconds of a round, and of the slower client's work in it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="of each turn; the first is not counted")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", choices=("rounds", "large", "adapters"))
    parser.add_argument(
        "--models", nargs="+", default=["small", "resnet18"], choices=("small", "cnn", "resnet18")
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    os.environ.update(QUIET)
    facts: dict[str, Any] = {
        "machine": "{processor}, {cpus} cores".format_map(environment("cpu")),
        "versions": {name: version(name) for name in ("flwr", "torch", "fedvision")},
        "load at the start": os.getloadavg()[0],
    }
    if options.only in (None, "rounds"):
        rounds = compare(options.models, options.rounds, options.turns)
        facts["rounds"] = measured(options.out / "deployment.json", facts) | rounds
        keep(options.out / "deployment.json", facts, draw_rounds)
    for model in ("large", "adapters"):
        if options.only in (None, model):
            facts = {key: value for key, value in facts.items() if key != "rounds"}
            keep(options.out / f"deployment-{model}.json", facts | {"large": large(model)}, draw_memory)


def measured(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured of other models on this machine with these versions."""
    held = json.loads(path.read_text()) if path.exists() else {}
    alike = all(held.get(key) == facts[key] for key in ("machine", "versions"))
    return dict(held["rounds"]) if alike and "rounds" in held else {}


def keep(path: Path, facts: dict[str, Any], draw: Any) -> None:
    """Write what was measured, and a picture beside it."""
    facts["load at the end"] = os.getloadavg()[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n")
    draw(facts, path.with_suffix(".svg"))
    shown = {key: value for key, value in facts.items() if key != "large"}
    print(json.dumps(shown | {k: v for k, v in facts.get("large", {}).items() if k != "memory"}, indent=2))


def compare(models: list[str], rounds: int, turns: int) -> dict[str, Any]:
    """Let both sides run in turns, each time the other one first, and return the medians by model."""
    measured_times: dict[str, dict[str, RoundState]] = {model: {"ours": [], "stock": []} for model in models}
    for turn, model in itertools.product(range(turns), models):
        for side in ("ours", "stock") if turn % 2 == 0 else ("stock", "ours"):
            with made(model, rounds) as folder:
                if side == "ours":
                    measured_times[model][side] += ours(folder)
                else:
                    measured_times[model][side] += stock(folder, NAMES, PRIVATE, rounds)
            beside = [f"{total - worked:.2f}" for total, worked in measured_times[model][side]]
            print(model, side, beside, flush=True)
    return {model: summary(sides) for model, sides in measured_times.items()}


def summary(sides: dict[str, RoundState]) -> dict[str, Any]:
    """Return what rounds cost beside the training on both sides, and the ratio of the medians."""
    found: dict[str, Any] = {}
    for side, rounds in sides.items():
        beside = [total - worked for total, worked in rounds]
        found[side] = {
            "seconds beside training": figures(beside),
            "seconds of a round": figures([total for total, _ in rounds]),
            "seconds of work": figures([worked for _, worked in rounds]),
        }
    medians = [found[side]["seconds beside training"]["median"] for side in ("ours", "stock")]
    return found | {"ours / stock": round(medians[0] / medians[1], 3)}


def ours(folder: Path) -> RoundState:
    """Run our side and return its rounds, from one answer of the clients to the next."""
    with joined(folder):
        run(folder, ["server", "experiment.toml", *SERVER, "--out", "run"], watched=False)
        logs = [(folder / f"{name}.log").read_text() for name in NAMES]
    ended = [[_moment(line) for line in log.splitlines() if " train: done" in line] for log in logs]
    worked = [[float(s) for s in re.findall(r"train: done .* ([\d.]+) s of work", log)] for log in logs]
    last = [max(times) for times in zip(*ended, strict=True)]
    work = [max(times) for times in zip(*worked, strict=True)]
    return [
        (after - before, s) for (before, after), s in zip(itertools.pairwise(last), work[1:], strict=True)
    ]


def _moment(line: str) -> float:
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def large(model: str) -> dict[str, Any]:
    """Train a large model and return whether its bits are the simulation's, bytes, and memory over time."""
    with made(model, 2) as folder:
        with joined(folder):
            memory = run(folder, ["server", "experiment.toml", *SERVER, "--out", "run"])
        timings, records = (
            [json.loads(line) for line in (folder / f"run/{name}.jsonl").read_text().splitlines()]
            for name in ("timings", "rounds")
        )
        run(folder, ["simulate", "experiment.toml", "--out", "simulated"])
        digests = {
            hashlib.sha256((folder / out / "model.safetensors").read_bytes()).hexdigest()
            for out in ("run", "simulated")
        }
        size = (folder / "run/model.safetensors").stat().st_size
        return {
            "bytes of the model": size,
            "bytes up a client and round": [record["bytes"]["up"] // len(NAMES) for record in records],
            "same bits as the simulation": len(digests) == 1,
            "seconds of the rounds": [round(timing["total"], 1) for timing in timings],
            "peak GB by process": {
                name: {
                    "private": max(private for _, private, _ in samples),
                    "with mapped files": max(whole for _, _, whole in samples),
                    "private at its first sample": samples[0][1],
                }
                for name, samples in memory.items()
            },
            "memory": memory,
        }


SERVER = ["--wait-for", "2", "--tls", "pki/server", "--public", PUBLIC, "--private", PRIVATE]


@contextlib.contextmanager
def made(model: str, rounds: int) -> Iterator[Path]:
    """Make a folder with keys, images and files."""
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name), model, rounds)
        yield Path(name)


@contextlib.contextmanager
def joined(folder: Path) -> Iterator[None]:
    """Run two clients in a folder until the block ends."""
    clients = [start(folder, ["client", f"{name}.toml"], f"{name}.log") for name in NAMES]
    try:
        yield
    finally:
        end(clients)


def write_files(folder: Path, model: str, rounds: int) -> None:
    import tomli_w

    from fedvision.config import ExperimentConfig
    from fedvision.deployment.certificates import make
    from fedvision.experiment import Experiment
    from fedvision.registry import allow_folder

    make(folder / "pki", hosts=["localhost"], clients=list(NAMES))
    (folder / "own_models.py").write_text(OWN_MODELS)
    experiment = {
        "name": "overhead",
        "rounds": rounds,
        "data": {"use": "digits"},
        "partition": {"use": "iid", "clients": 2},
        "model": MODELS[model],
        "training": {"steps": 1, "batch_size": 2, "lr": 0.01},
        "evaluation": {"every": rounds},
    }
    allow_folder(folder)
    if "weights" in MODELS[model]:
        experiment |= with_weights(folder, experiment)
    (folder / "experiment.toml").write_text(tomli_w.dumps(experiment))
    built = Experiment.build(ExperimentConfig.load(folder / "experiment.toml"))
    train = built.dataset.train
    for indices, name in zip(built.split.clients, NAMES, strict=True):
        np.savez(
            folder / f"{name}.npz", train_images=train.images[indices], train_labels=train.labels[indices]
        )
        own = folder / "pki/clients" / name
        table = {
            "name": name,
            "threads": 1,
            "state": f"state-{name}",
            "plugins": ["own_models"],
            "superlink": {
                "address": PUBLIC,
                "key": str(own / "client.key"),
                "root_certificate": str(folder / "pki/ca.crt"),
            },
            "data": {"use": "npz", "path": f"{name}.npz", "classes": list("0123456789")},
        }
        if "weights" in MODELS[model]:
            table["model"] = {"weights": WEIGHTS}
        (folder / f"{name}.toml").write_text(tomli_w.dumps(table))


def with_weights(folder: Path, experiment: dict[str, Any]) -> dict[str, Any]:
    """Write random weights and a few images; return the tables that name them."""
    from safetensors.torch import save_file

    from fedvision.config import ExperimentConfig
    from fedvision.experiment import Experiment

    model = {**experiment["model"], "weights": str(folder / WEIGHTS)}
    plain = {**experiment, "transforms": COLOUR, "model": {"use": model["use"]}}
    built = Experiment.build(ExperimentConfig.from_dict(plain))
    save_file(built.model.state_dict(), folder / WEIGHTS)
    arrays = {}
    for name, part in (("train", built.dataset.train), ("test", built.dataset.test)):
        assert part is not None
        arrays |= {f"{name}_images": part.images[:FEW], f"{name}_labels": part.labels[:FEW]}
    np.savez(folder / "few.npz", **arrays)
    data = {"use": "npz", "path": str(folder / "few.npz"), "classes": list("0123456789")}
    return {"transforms": COLOUR, "model": model, "data": data}


def start(folder: Path, command: list[str], log: str) -> subprocess.Popen[bytes]:
    with (folder / log).open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "fedvision.cli.main", *command], cwd=folder, stdout=file, stderr=file
        )


KINDS = {
    "fedvision.deployment.client.trainer": "client: training",
    "fedvision.deployment.server.superlink": "SuperLink",
    "fedvision.cli.main server": "server",
    "fedvision.cli.main client": "client: connection",
}
"""Kinds of process by the part of the command line that tells them."""
Memory = dict[str, list[tuple[float, float, float]]]
"""By kind of process: second, gigabytes of private memory, gigabytes with mapped files."""


def run(folder: Path, command: list[str], *, watched: bool = True) -> Memory:
    """Run a command and return the memory of each process of the folder over time.

    To look at it walks every process's pages: what is timed is not watched.
    """
    process = start(folder, command, "command.log")
    memory: Memory = {}
    over, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(1.0):
            second = round(time.monotonic() - began, 1)
            for name, held in held_by(folder).items():
                memory.setdefault(name, []).append((second, *held))

    watcher = threading.Thread(target=watch)
    if watched:
        watcher.start()
    code = process.wait()
    over.set()
    if watched:
        watcher.join()
    if code:
        logs = [folder / "command.log", folder / "superlink/superlink.log"]
        raise SystemExit("\n".join(log.read_text()[-4000:] for log in logs if log.exists()))
    return memory


def held_by(folder: Path) -> dict[str, tuple[float, float]]:
    """Return gigabytes by kind of process, private and in all: the largest of each kind."""
    found: dict[str, tuple[float, float]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if Path(os.readlink(path / "cwd")) != folder.resolve():
                continue
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            kind = kind_of(line)
            text = (path / "smaps_rollup").read_text()
            private, whole = (_gigabytes(text, name) for name in ("Pss_Anon", "Pss"))
            if kind and whole > found.get(kind, (0.0, 0.0))[1]:
                found[kind] = (private, whole)
    return found


def kind_of(command: str) -> str:
    """Return what a process is by its command line, nothing for any other."""
    return next((name for part, name in KINDS.items() if part in command), "")


def _gigabytes(text: str, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return round(int(found[1]) * 1024 / 1e9, 3) if found else 0.0


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def figures(seconds: list[float]) -> dict[str, float]:
    """Return median and range."""
    return {
        "median": round(statistics.median(seconds), 2),
        "min": round(min(seconds), 2),
        "max": round(max(seconds), 2),
        "n": len(seconds),
    }


if __name__ == "__main__":
    main()
