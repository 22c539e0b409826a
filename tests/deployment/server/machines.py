"""Real clients and servers on loopback, each in a process of its own, with TLS and keys."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedvision import simulate
from fedvision.config import ExperimentConfig
from fedvision.experiment import Experiment
from fedvision.plugin_folder import allow_folder

WAIT_S = 900.0
"""Seconds after which a test gives up: on a busy machine a process takes minutes to start."""


def eventually(holds: Callable[[], Any], what: str, seconds: float = WAIT_S) -> Any:
    """Wait until something is true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.02)
    return found


class Machines:
    """A folder with an experiment, a server's files and each client's own images.

    Args:
        folder: Everything goes here.
        pki: As ``fedvision certificates`` makes it, for the clients north and south.
        experiment: TOML of an experiment on images at hand with as many clients as there are names.
        names: The clients, as ``pki`` knows them.
    """

    def __init__(
        self, folder: Path, pki: Path, experiment: str, names: Sequence[str] = ("north", "south")
    ) -> None:
        self.names = tuple(names)
        self.share: dict[str, str] = {}
        """How clients share their class counts; the others share them as they are."""
        self.statistics: tuple[str, ...] = ()
        """Further statistics that the server may ask every client for."""
        self.generators = False
        """Whether every client lets a generator be trained on its images."""
        self.folder, self.pki = folder, pki
        self.experiment = folder / "experiment.toml"
        self.experiment.write_text(experiment)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.public = ""
        self._give_images()

    def _give_images(self) -> None:
        """Write each client's images to a file of its own."""
        folder = self.folder
        federation = Experiment.build(ExperimentConfig.load(self.experiment))
        train = federation.dataset.train
        split, self.classes = federation.split, federation.dataset.classes
        for client, name in enumerate(self.names):
            # A machine has all of its images, and keeps some of them from training itself.
            indices = np.union1d(split.clients[client], split.test(client))
            np.savez(
                folder / f"{name}.npz", train_images=train.images[indices], train_labels=train.labels[indices]
            )

    def data_lines(self, name: str) -> list[str]:
        """Return the images' part of a client's file."""
        return ['use = "npz"', f'path = "{name}.npz"', f"classes = {json.dumps(self.classes)}"]

    def client_file(self, name: str, *lines: str) -> Path:
        """Write a client's own file; ``lines`` stand before its tables."""
        own = self.pki / "clients" / name
        file = self.folder / f"{name}.toml"
        file.write_text(
            "\n".join(
                [
                    f'name = "{name}"',
                    "threads = 1",
                    *([] if any(line.startswith("state") for line in lines) else [f'state = "state-{name}"']),
                    *lines,
                    "[superlink]",
                    f'address = "{self.public}"',
                    f'key = "{own}/client.key"',
                    f'root_certificate = "{self.pki}/ca.crt"',
                    "[data]",
                    *self.data_lines(name),
                    "[share]",
                    f'counts = "{self.share.get(name, "plain")}"',
                    f'certificate = "{own}/client.crt"',
                    f"statistics = {json.dumps(self.statistics)}",
                    f"generators = {json.dumps(self.generators)}",
                ]
            )
        )
        return file

    def client(self, name: str, *lines: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a client."""
        return self._start(name, ["client", str(self.client_file(name, *lines))], environment)

    def supernode(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        """Start Flower's own client with the client's file."""
        programs, own = Path(sys.executable).parent, self.pki / "clients" / name
        command = [str(programs / "flower-supernode"), "--superlink", self.public, *options]
        command += ["--root-certificates", str(self.pki / "ca.crt"), "--port", str(free_ports(1)[0])]
        command += ["--auth-supernode-private-key", str(own / "client.key")]
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        quiet |= {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
        home = {"FLWR_HOME": str(self.folder / f"flower-{name}")}
        return self._run(
            name, command, quiet | home | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        )

    def server(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the server on the ports that its first start found."""
        private, public = self._ports()
        self.public = public
        command = [
            "server",
            str(self.experiment),
            "--wait-for",
            f"{len(self.names)}",
            "--tls",
            str(self.pki / "server"),
        ]
        command += ["--public", public, "--private", private, "--out", str(self.out)]
        command += ["--state", str(self.folder / "superlink"), *options]
        return self._start("server", command, {})

    def submit(self, experiment: Path, out: Path) -> subprocess.Popen[bytes]:
        """Send an experiment to the SuperLink that a server keeps up."""
        command = ["submit", str(experiment), "--wait-for", f"{len(self.names)}", "--out", str(out)]
        command += ["--tls", str(self.pki / "server"), "--private", self._ports()[0]]
        return self._start("submit", [*command, "--state", str(self.folder / "superlink")], {})

    def _ports(self) -> tuple[str, str]:
        file = self.folder / "ports.json"
        if not file.exists():
            private, public = free_ports(2)
            file.write_text(json.dumps([f"127.0.0.1:{private}", f"localhost:{public}"]))
        private, public = json.loads(file.read_text())
        return private, public

    def _start(
        self, name: str, command: Sequence[str], environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        return self._run(name, [sys.executable, "-m", "fedvision.cli.main", *command], environment)

    def _run(self, name: str, command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as file:
            process = self._launch(
                name,
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    def _launch(self, name: str, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process on the machine of a client or of the server."""
        return subprocess.Popen(command, **options)

    @property
    def out(self) -> Path:
        """The server's run folder."""
        return self.folder / "run"

    def log(self, name: str) -> str:
        """Return the log of a client or the server so far."""
        file = self.folder / f"{name}.log"
        return file.read_text() if file.exists() else ""

    def rounds(self) -> list[dict[str, Any]]:
        """Return the recorded rounds."""
        file = self.out / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def training_child(self, client: subprocess.Popen[bytes]) -> int:
        """Return the process number of a client's training process."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                after = path.read_text().rpartition(")")[2].split()
                if int(after[1]) == client.pid:
                    return int(path.parent.name)
        return 0

    def simulated(self) -> str:
        """Run the same experiment on the serial engine and return its model's digest."""
        out = self.folder / "simulated"
        allow_folder(self.experiment.parent)
        simulate(ExperimentConfig.load(self.experiment), out=out)
        return digest(out)

    def end(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def free_ports(number: int) -> list[int]:
    """Return ports on which nobody listens, and which no outgoing connection is given in the meantime."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == number:
            return found
    raise AssertionError("no port is free")


def digest(run: Path) -> str:
    """Return the digest of a run's final model."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


@contextlib.contextmanager
def machines(
    folder: Path, pki: Path, experiment: str, names: Sequence[str] = ("north", "south")
) -> Iterator[Machines]:
    """Make machines that are ended with the block."""
    made = Machines(folder, pki, experiment, names)
    try:
        yield made
    finally:
        made.end()
