"""What a round costs beside its training across machines: ours and stock Flower's deployment in turn.

    python benchmarks/deployment.py [--rounds 8] [--only ours|stock|large] [--models cnn resnet18]

Two clients and a server on this machine's loopback, TLS, a key for each client, SQLite. Both sides send the
same number of tensors of the same shapes (``cnn``: 8 tensors, ``resnet18``: 62 and its float buffers) and
work next to nothing, so that a round is its overhead: the median of rounds 2 and later is taken. ``large``
sends a model of 100 million parameters (400 MB) for one round, compares the bits with a simulation, and says
how much memory each process held at most.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("north", "south")
PUBLIC, PRIVATE = "localhost:28443", "127.0.0.1:28000"
MODELS = {
    "cnn": {"use": "cnn", "width": 4, "dense": 8},
    "resnet18": {"use": "resnet18"},
    "large": {"use": "large_model:wide"},
}
LARGE = """
from torch import nn
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", choices=("ours", "stock", "large"))
    parser.add_argument("--models", nargs="+", default=["cnn", "resnet18"], choices=("cnn", "resnet18"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.update(QUIET)
    facts: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("flwr", "torch", "fedvision")},
    }
    for model in options.models if options.only != "large" else ():
        if options.only in (None, "ours"):
            facts[f"ours {model}"] = ours(model, options.rounds)
        if options.only in (None, "stock"):
            facts[f"stock {model}"] = stock(model, options.rounds)
        print(json.dumps({key: value for key, value in facts.items() if model in key}), flush=True)
    if options.only in (None, "large"):
        facts["large"] = large()
    facts["load at the end"] = os.getloadavg()[0]
    page = json.dumps(facts, indent=2)
    print(page)
    if options.out:
        options.out.write_text(page + "\n")


def ours(model: str, rounds: int) -> dict[str, Any]:
    """Return the seconds of our rounds beside the slower client's training."""
    with federation(model, rounds) as folder:
        run(folder, ["server", "experiment.toml", *SERVER, "--out", "run"])
        logs = [(folder / f"{name}.log").read_text() for name in NAMES]
        timings = [
            json.loads(line)["train"] for line in (folder / "run/timings.jsonl").read_text().splitlines()
        ]
        worked = [[float(s) for s in re.findall(r"train: done \(([\d.]+) s", log)] for log in logs]
        beside = [total - max(times) for total, *times in zip(timings, *worked, strict=True)]
        return {"seconds a round": figures(timings), "beside training": figures(beside)}


def large() -> dict[str, Any]:
    """Send a model of 400 MB for one round and return whether its bits are the simulation's, and memory."""
    with federation("large", 1) as folder:
        peaks = run(folder, ["server", "experiment.toml", *SERVER, "--out", "run"])
        timings = json.loads((folder / "run/timings.jsonl").read_text().splitlines()[-1])
        run(folder, ["simulate", "experiment.toml", "--out", "simulated"])
        digests = {
            hashlib.sha256((folder / out / "model.safetensors").read_bytes()).hexdigest()
            for out in ("run", "simulated")
        }
        size = (folder / "run/model.safetensors").stat().st_size
        return {
            "bytes of the model": size,
            "same bits as the simulation": len(digests) == 1,
            "seconds of the round": timings["train"],
            "peak GB by process": peaks,
        }


SERVER = ["--wait-for", "2", "--tls", "pki/server", "--public", PUBLIC, "--private", PRIVATE]


@contextlib.contextmanager
def federation(model: str, rounds: int) -> Iterator[Path]:
    """Make a folder with keys, images and files, and run two clients in it until the block ends."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_files(folder, model, rounds)
        clients = [start(folder, ["client", f"{name}.toml"], f"{name}.log") for name in NAMES]
        try:
            yield folder
        finally:
            end(clients)


def write_files(folder: Path, model: str, rounds: int) -> None:
    import tomli_w

    from fedvision.config import ExperimentConfig
    from fedvision.deploy.certificates import make
    from fedvision.federation import Federation
    from fedvision.registry import allow_folder

    make(folder / "pki", hosts=["localhost"], clients=list(NAMES))
    (folder / "large_model.py").write_text(LARGE)
    experiment = {
        "name": "overhead",
        "rounds": rounds,
        "data": {"use": "digits"},
        "partition": {"use": "iid", "clients": 2},
        "model": MODELS[model],
        "training": {"steps": 1, "batch_size": 2, "lr": 0.01},
        "evaluation": {"every": rounds},
    }
    (folder / "experiment.toml").write_text(tomli_w.dumps(experiment))
    allow_folder(folder)
    built = Federation.build(ExperimentConfig.load(folder / "experiment.toml"))
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
            "plugins": ["large_model"],
            "superlink": {
                "address": PUBLIC,
                "key": str(own / "client.key"),
                "root_certificate": str(folder / "pki/ca.crt"),
            },
            "data": {"use": "npz", "path": f"{name}.npz", "classes": list("0123456789")},
        }
        (folder / f"{name}.toml").write_text(tomli_w.dumps(table))


def start(folder: Path, command: list[str], log: str) -> subprocess.Popen[bytes]:
    with (folder / log).open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "fedvision.cli", *command], cwd=folder, stdout=file, stderr=file
        )


def run(folder: Path, command: list[str]) -> dict[str, float]:
    """Run a command and return the most memory that each process of the folder held."""
    process = start(folder, command, "command.log")
    peaks: dict[str, float] = {}
    while process.poll() is None:
        for name, size in held().items():
            peaks[name] = max(peaks.get(name, 0.0), size)
        time.sleep(0.2)
    if process.returncode:
        logs = [folder / "command.log", folder / "superlink/superlink.log"]
        raise SystemExit("\n".join(log.read_text()[-4000:] for log in logs if log.exists()))
    return peaks


def held() -> dict[str, float]:
    """Return gigabytes by kind of process: the largest of each."""
    kinds = {"trainer": "client: training", "deploy.superlink": "SuperLink", "cli server": "server"}
    found: dict[str, float] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            kind = next((name for part, name in kinds.items() if part in line), "")
            kind = kind or ("client: connection" if "cli client" in line else "")
            peak = re.search(r"VmHWM:\s+(\d+) kB", (path / "status").read_text())
            if kind and peak:
                found[kind] = max(found.get(kind, 0.0), round(int(peak[1]) * 1024 / 1e9, 2))
    return found


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def figures(seconds: list[float]) -> dict[str, float]:
    """Return median and range without the first round, which loads libraries."""
    later = seconds[1:] or seconds
    return {
        "median": round(statistics.median(later), 2),
        "min": round(min(later), 2),
        "max": round(max(later), 2),
        "n": len(later),
    }


STOCK_APP = """
import json, os, time
from flwr.app import ArrayRecord, MetricRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

def shapes():
    return json.load(open(os.environ["SHAPES"]))

client = ClientApp()

@client.train()
def train(message, context):
    import torch  # as any client that trains must
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 2})})
    return Message(content, reply_to=message)

class Timed(FedAvg):
    def aggregate_train(self, server_round, replies):
        done = super().aggregate_train(server_round, replies)
        with open(os.environ["TIMES"], "a") as file:
            print(server_round, time.time(), file=file)
        return done

server = ServerApp()

@server.main()
def main(grid, context):
    import numpy as np
    arrays = ArrayRecord([np.zeros(shape, np.float32) for shape in shapes()])
    with open(os.environ["TIMES"], "a") as file:
        print(0, time.time(), file=file)
    Timed(fraction_evaluate=0.0).start(grid, arrays, num_rounds=int(os.environ["ROUNDS"]))
"""
STOCK_PROJECT = """
[project]
name = "stock"
version = "1.0.0"
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "stock_app:server"
clientapp = "stock_app:client"
"""


def stock(model: str, rounds: int) -> dict[str, Any]:
    """Return the seconds of stock Flower's rounds: SuperLink, two SuperNodes, ``flwr run``."""
    from fedvision.models.build import build_model
    from fedvision.models.state import get_state, travelling
    from fedvision.types import PluginSpec

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_files(folder, model, rounds)
        from fedvision.config import ExperimentConfig

        config = ExperimentConfig.load(folder / "experiment.toml")
        built = build_model(config.model, num_classes=10, in_channels=1, image_size=(8, 8), seed=0)
        assert isinstance(config.model, PluginSpec)
        state = get_state(built, travelling(built, config.model.travel))
        (folder / "shapes.json").write_text(json.dumps([list(tensor.shape) for tensor in state.values()]))
        os.environ.update(
            SHAPES=str(folder / "shapes.json"),
            TIMES=str(folder / "times"),
            ROUNDS=str(rounds),
            FLWR_HOME=str(folder / "home"),
        )
        (folder / "app").mkdir()
        (folder / "app/pyproject.toml").write_text(STOCK_PROJECT)
        (folder / "app/stock_app.py").write_text(STOCK_APP)
        (folder / "home").mkdir()
        (folder / "home/config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{PRIVATE}"\n'
            f'root-certificates = "{folder}/pki/ca.crt"\n'
        )
        with stock_processes(folder):
            wait_for(folder / "times", rounds)
        times = [float(line.split()[1]) for line in (folder / "times").read_text().splitlines()]
        seconds = [after - before for before, after in itertools.pairwise(times)]
        return {"seconds a round": figures(seconds), "tensors": len(state)}


@contextlib.contextmanager
def stock_processes(folder: Path) -> Iterator[None]:
    tools, tls = Path(sys.executable).parent, folder / "pki/server"
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    host, port = PRIVATE.split(":")
    running: list[subprocess.Popen[bytes]] = []

    def begin(*command: str) -> None:
        with (folder / "stock.log").open("ab") as log:
            running.append(
                subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
            )

    try:
        files = ["--ssl-certfile", f"{tls}/server.crt", "--ssl-keyfile", f"{tls}/server.key"]
        files += ["--ssl-ca-certfile", f"{tls}/ca.crt", "--database", "sl.db"]
        safe = ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        begin(str(tools / "flower-superlink"), "--host", host, "--port", port, *files, *safe)
        for number, name in enumerate(NAMES):
            key = f"{tls}/clients/{name}.pub"
            retry([str(tools / "flwr"), "supernode", "register", key, "here"], folder)
            node = [str(tools / "flower-supernode"), "--root-certificates", "pki/ca.crt"]
            node += ["--superlink", PRIVATE, "--port", str(28094 + number)]
            begin(*node, "--auth-supernode-private-key", f"pki/clients/{name}/client.key")
        retry([str(tools / "flwr"), "run", "app", "here"], folder)
        yield
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        time.sleep(3)
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def retry(command: list[str], folder: Path) -> None:
    for _ in range(40):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if not done.returncode:
            return
        time.sleep(1)
    raise SystemExit(f"{command}: {done.stdout} {done.stderr} {(folder / 'stock.log').read_text()[-3000:]}")


def wait_for(times: Path, rounds: int) -> None:
    end = time.monotonic() + 60 * rounds
    while not times.exists() or len(times.read_text().splitlines()) <= rounds:
        if time.monotonic() > end:
            raise SystemExit((times.parent / "stock.log").read_text()[-3000:])
        time.sleep(0.5)


if __name__ == "__main__":
    main()
