"""Stock Flower's deployment of the same federation: its SuperLink, its SuperNodes, ``flwr run``, its FedAvg.

The client builds the same model and trains it by the same step on the same images as ours, and writes down
how long that took; everything else that a round takes is what is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

APP = """
import os, time
from flwr.app import ArrayRecord, MetricRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

def built():
    from pathlib import Path
    from fedvision.config import ExperimentConfig
    from fedvision.models.build import build_model
    from fedvision.registry import allow_folder
    from fedvision.tasks.classification import Classification
    allow_folder(Path(os.environ["EXPERIMENT"]).parent)
    config = ExperimentConfig.load(os.environ["EXPERIMENT"])
    shape = {"num_classes": 10, "in_channels": 1, "image_size": (8, 8)}
    return build_model(config.model, task=Classification(), seed=0, **shape)

def tensors(model):
    # Stock averaging multiplies every array by a float: counters cannot travel.
    return {name: t.detach().clone() for name, t in model.state_dict().items() if t.is_floating_point()}

client = ClientApp()

@client.train()
def train(message, context):
    import numpy as np
    import torch
    began = time.perf_counter()
    model = built()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    with np.load(os.environ["IMAGES"]) as data:
        x = torch.from_numpy(data["train_images"][:2]).float().div(255).movedim(-1, 1)
        y = torch.from_numpy(data["train_labels"][:2])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimiser.step()
    arrays = ArrayRecord(tensors(model))
    worked = time.perf_counter() - began
    metrics = MetricRecord({"num-examples": 2, "worked": worked})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

class Timed(FedAvg):
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        worked = max(reply.content["metrics"]["worked"] for reply in replies)
        done = super().aggregate_train(server_round, replies)
        with open(os.environ["TIMES"], "a") as file:
            print(time.time(), worked, file=file)
        return done

server = ServerApp()

@server.main()
def main(grid, context):
    arrays = ArrayRecord(tensors(built()))
    Timed(fraction_evaluate=0.0).start(grid, arrays, num_rounds=int(os.environ["ROUNDS"]))
"""
PROJECT = """
[project]
name = "stock"
version = "1.0.0"
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "stock_app:server"
clientapp = "stock_app:client"
"""


def stock(folder: Path, names: tuple[str, ...], private: str, rounds: int) -> list[tuple[float, float]]:
    """Run the rounds and return the seconds of each but the first, and of the slower client's work in it.

    Args:
        folder: With ``pki``, ``experiment.toml`` and the clients' images.
        names: The clients.
        private: ``HOST:PORT`` to listen on.
        rounds: How many.
    """
    times = folder / "times"
    os.environ.update(
        EXPERIMENT=str(folder / "experiment.toml"),
        IMAGES=str(folder / f"{names[0]}.npz"),
        TIMES=str(times),
        ROUNDS=str(rounds),
        FLWR_HOME=str(folder / "home"),
    )
    for name, text in {"pyproject.toml": PROJECT, "stock_app.py": APP}.items():
        (folder / "app").mkdir(exist_ok=True)
        (folder / "app" / name).write_text(text)
    (folder / "home").mkdir()
    (folder / "home/config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{private}"\n'
        f'root-certificates = "{folder}/pki/ca.crt"\n'
    )
    with _processes(folder, names, private):
        _wait_for(times, rounds)
    stamps = [tuple(map(float, line.split())) for line in times.read_text().splitlines()]
    return [(after[0] - before[0], after[1]) for before, after in itertools.pairwise(stamps)]


@contextlib.contextmanager
def _processes(folder: Path, names: tuple[str, ...], private: str) -> Iterator[None]:
    tools, tls = Path(sys.executable).parent, folder / "pki/server"
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    host, port = private.split(":")
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
        for number, name in enumerate(names):
            key = f"{tls}/clients/{name}.pub"
            _retry([str(tools / "flwr"), "supernode", "register", key, "here"], folder)
            node = [str(tools / "flower-supernode"), "--root-certificates", "pki/ca.crt"]
            node += ["--superlink", private, "--port", str(28094 + number)]
            begin(*node, "--auth-supernode-private-key", f"pki/clients/{name}/client.key")
        _retry([str(tools / "flwr"), "run", "app", "here"], folder)
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


def _retry(command: list[str], folder: Path) -> None:
    for _ in range(40):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if not done.returncode:
            return
        time.sleep(1)
    raise SystemExit(f"{command}: {done.stdout} {done.stderr} {(folder / 'stock.log').read_text()[-3000:]}")


def _wait_for(times: Path, rounds: int) -> None:
    end = time.monotonic() + 90 * rounds
    while not times.exists() or len(times.read_text().splitlines()) < rounds:
        if time.monotonic() > end:
            raise SystemExit((times.parent / "stock.log").read_text()[-3000:])
        time.sleep(0.5)
