"""A server and two clients on a machine each, with Fashion-MNIST in folders of classes on the clients."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.deployment.server.machines import WAIT_S, Machines, digest, eventually
from tests.deployment.server.network import Network, network
from tests.deployment.server.training_barrier import begun, holding

CLASSES = (
    "ankle boot",
    "bag",
    "coat",
    "dress",
    "pullover",
    "sandal",
    "shirt",
    "sneaker",
    "t-shirt",
    "trouser",
)
_LABELS = (8, 9, 4, 3, 2, 5, 6, 7, 1, 0)
"""Place in ``CLASSES`` of each of Fashion-MNIST's labels."""
_EACH = 300
"""Training images of a client; the second of two has twice as many of the last five classes."""
EXPERIMENT = """
name = "apart"
seed = 5
rounds = {rounds}
[data]
use = "image-folder"
path = "{folder}/images"
size = 28
channels = 1
levels = ["client", "class"]
[partition]
use = "column"
name = "client"
[model]
use = "cnn"
width = {width}
dense = 16
[training]
epochs = {epochs}
lr = 0.05
[strategy]
use = "{strategy}"
[evaluation]
holdout = 0.2
{more}
"""


class Apart(Machines):
    """Machines with an address each; the server at 10.77.0.1.

    Args:
        folder: Everything goes here.
        pki: As ``fedvision certificates`` makes it, for 10.77.0.1 and the clients north and south.
        raw: Folder of Fashion-MNIST's files.
        experiment: Goes into ``EXPERIMENT``.
        net: The machines server, north and south.
    """

    def __init__(self, folder: Path, pki: Path, raw: Path, net: Network, **experiment: object) -> None:
        self.net, self._raw = net, raw
        self.servers: list[subprocess.Popen[bytes]] = []
        table = {"rounds": 5, "epochs": 1, "strategy": "scaffold", "width": 4, "folder": folder, "more": ""}
        super().__init__(folder, pki, EXPERIMENT.format(**{**table, **experiment}))

    def _give_images(self) -> None:
        images, labels = _first(self._raw, "train", 3 * _EACH)
        test = _first(self._raw, "t10k", _EACH)
        (self.folder / "images/train").mkdir(parents=True)
        for name, part in self.parts(labels).items():
            _write(self.folder / name / "train", images[part], labels[part])
            # With a test folder of its own a client reads its images in the order of their names, as the
            # simulation reads them.
            _write(self.folder / name / "test", test[0][:10], test[1][:10])
            (self.folder / "images/train" / name).symlink_to(self.folder / name / "train")
        _write(self.folder / "images/test/all", *test)

    def parts(self, labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return which images each client has, by its name."""
        third = np.arange(len(labels)) % 3 == 0
        south = third == (labels < 5)
        return {"north": np.flatnonzero(~south)[:_EACH], "south": np.flatnonzero(south)[:_EACH]}

    def data_lines(self, name: str) -> list[str]:
        """Return a client's file: its own folders of classes and nobody else's."""
        lines = ['use = "image-folder"', f'path = "{name}"', "size = 28", "channels = 1"]
        return [*lines, f"classes = {json.dumps(CLASSES)}"]

    def _ports(self) -> tuple[str, str]:
        return "127.0.0.1:8000", f"{self.net['server'].address}:8443"

    def _launch(self, name: str, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        process = self.net[name].start(command, **options)
        if name == "server":
            self.servers.append(process)
        return process

    def superlink(self) -> int:
        """Return the number of the process that the server started as its SuperLink."""
        for number in self.net["server"].processes():
            if b"fedvision.deployment.server.superlink" in Path(f"/proc/{number}/cmdline").read_bytes():
                return number
        raise AssertionError("there is no SuperLink")

    def everybody(self, **held: int) -> list[subprocess.Popen[bytes]]:
        """Start the server and both clients; return the clients.

        Args:
            held: By client, a round in whose training it is held.
        """
        self.server()
        rounds = {name: [held[name]] if name in held else [] for name in self.names}
        return [self.client(name, **holding(self, name, *rounds[name])) for name in self.names]

    def at_work(self, name: str, round: int) -> None:
        """Wait until a client that is held in a round's training has begun it."""
        eventually(lambda: round in begun(self, name) or self._server_ended(), f"{name} in round {round}")
        assert not self._server_ended(), self.log("server")

    def _server_ended(self) -> bool:
        return self.servers[-1].poll() is not None

    def finish(self, rounds: int = 5) -> None:
        """Wait for the run's end and check that nothing of it differs from a simulation."""
        assert self.servers[-1].wait(WAIT_S) == 0, self.log("server")
        assert [record["round"] for record in self.rounds()] == list(range(1, rounds + 1))
        assert [record["clients"] for record in self.rounds()] == [[0, 1]] * rounds
        assert [record["refused"] for record in self.rounds()] == [[]] * rounds
        assert digest(self.out) == self.simulated()

    def simulated(self) -> str:
        """Run the same experiment on the serial engine, once for all tests that share it."""
        text = self.experiment.read_text().replace(str(self.folder), "")
        if text not in _SIMULATED:
            _SIMULATED[text] = super().simulated()
        return _SIMULATED[text]


_SIMULATED: dict[str, str] = {}


@contextmanager
def apart(folder: Path, pki: Path, raw: Path, **experiment: object) -> Iterator[Apart]:
    """Make machines that are ended with the block."""
    with network("server", "north", "south") as net:
        made = Apart(folder, pki, raw, net, **experiment)
        try:
            yield made
        finally:
            made.end()


@cache
def _first(raw: Path, part: str, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the first images [N, 28, 28] of a part, and their places in ``CLASSES`` [N]."""
    images = _bytes(raw / f"{part}-images-idx3-ubyte", 16 + number * 784)[16:].reshape(-1, 28, 28)
    labels = _bytes(raw / f"{part}-labels-idx1-ubyte", 8 + number)[8:]
    return images, np.array(_LABELS)[labels]


def _bytes(file: Path, number: int) -> NDArray[np.uint8]:
    with file.open("rb") if file.exists() else gzip.open(f"{file}.gz") as opened:
        return np.frombuffer(opened.read(number), np.uint8)


def _write(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Write images as files in folders of classes."""
    for name in CLASSES:
        os.makedirs(folder / name)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / CLASSES[label] / f"{number:04d}.png")
