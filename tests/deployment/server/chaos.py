"""One run in which everything goes wrong once, on six machines; how it must end, and its events.

=======  ===============================================================================================
server   its SuperLink is killed, then the whole machine, then the command; each time it goes on
north    its training process is killed; its link is cut for half a minute
south    its process is killed and started again; it gets a message twice
east     is slower than a round waits for
west     answers with NaN
attic    has a full disk
=======  ===============================================================================================
"""

from __future__ import annotations

import html
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.reporting.run_data import read_facts
from fedvision.runs.events import Event
from fedvision.runs.folder import RunFolder
from tests.deployment.server.isolated_machines import Apart
from tests.deployment.server.machines import eventually
from tests.deployment.server.training_barrier import hold, holding

NAMES = ("north", "south", "east", "west", "attic")
ROUND = """
[round]
min_clients = 2
wait_after_quorum = {wait}
late = "next-round"
"""
EVENTS_OF_CLIENTS = (
    ("", "the run had been stopped or killed, and went on"),
    ("north", "reports that its training process died in a task, which it did once more"),
    ("south", "reports that it was given a message twice, and answered it once"),
    ("east", "after the quorum of 2"),
    ("east", "answered late, used with weight"),
    ("west", "NaN"),
    ("west", "set aside, not selected again: 3 of its answers were refused"),
    ("attic", "No space left on device"),
)
"""Whom each thing happens to, and words of the sentence that must stand in the report."""
EVENTS = (
    *EVENTS_OF_CLIENTS,
    ("", "the SuperLink ended unexpectedly and was started again"),
    ("north", "reports that its connection was away for"),
    ("north", "answered late, used with weight"),
    ("south", "reports that its process died and was started again"),
)
_HELD = {"north": (2, 3), "south": (3,), "east": (3,), "attic": (2,)}
"""The rounds in whose training something happens to a client, which waits there for it."""
_DISK_BYTES = 1 << 20
_NOT_A_NUMBER = """
import sys
if "fedvision.deployment.client.trainer" in sys.orig_argv:
    from fedvision.flower import client_app
    from fedvision.flower import codec
    class Codec:
        def __getattr__(self, name):
            return getattr(codec, name)
        def encode_update(self, update):
            for tensor in update.state.values():
                tensor.fill_(float("nan"))
            return codec.encode_update(update)
    client_app.codec = Codec()
"""
_TWICE = """
import sys
if "fedvision.cli.main" in sys.orig_argv:
    from fedvision.deployment.transport.internals_fleet import FleetLink
    receive, again = FleetLink.receive, []
    def twice(self):
        if len(again) == 1 and again[0] is not None:
            return again.append(None) or again[0]
        found = receive(self)
        if found and not again and self.incoming(found).head.metadata.message_type == "train":
            again.append(found)
        return found
    FleetLink.receive = twice
"""


class ChaosRun(Apart):
    """As ``Apart``, with five clients and what goes wrong with them."""

    names = NAMES

    def __init__(self, *arguments: Any, wait: float = 5.0, **experiment: object) -> None:
        super().__init__(*arguments, **{"strategy": "fedavg", "more": ROUND.format(wait=wait), **experiment})

    def parts(self, labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return every fifth image for each: who is lost for a while takes no class away."""
        return {name: np.arange(number, len(labels), 5) for number, name in enumerate(NAMES)}

    def start_all(self) -> dict[str, subprocess.Popen[bytes]]:
        """Start the server and the clients with what is wrong with them."""
        self.server("--wait-for", str(len(NAMES)))
        wrong = {"south": _TWICE, "west": _NOT_A_NUMBER}
        return {
            name: self.client(name, **holding(self, name, *_HELD.get(name, ()), more=wrong.get(name, "")))
            for name in NAMES
        }

    def _launch(self, name: str, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        if name == "attic":
            # A disk of its own, gone with the process.
            state = self.folder / "state-attic"
            state.mkdir(exist_ok=True)
            mount = f'mount -t tmpfs -o size={_DISK_BYTES} none "{state}" && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
        return super()._launch(name, command, **options)

    @staticmethod
    def fill(state: Path, client: subprocess.Popen[bytes]) -> Path:
        """Fill the disk on which a client's state is; the file returned is what fills it."""
        filler = Path(f"/proc/{client.pid}/root{state}/filler")
        try:
            with filler.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            return filler

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until something holds while the run goes on."""
        eventually(lambda: holds() or self.servers[-1].poll() is not None, what)
        assert self.servers[-1].poll() is None, self.log("server")

    def kill_training(self, north: subprocess.Popen[bytes]) -> None:
        """Kill a client's training process in the second round."""
        self.at_work("north", 2)
        os.kill(self.training_child(north), signal.SIGKILL)
        hold(self, "north", 3)

    def fill_disk(self, attic: subprocess.Popen[bytes]) -> None:
        """Leave no room on a client's disk for what it trained in the second round."""
        state, message = self.folder / "state-attic", "train: this machine says: No space left on device"
        self.at_work("attic", 2)
        self.fill(state, attic)
        hold(self, "attic", 4, 6)
        # Again and again: the client's own files come and go, and leave room.
        self.until(lambda: self.fill(state, attic) and message in self.log("attic"), "a full disk's sentence")
        self.fill(state, attic).unlink()

    def kill_client(self, south: subprocess.Popen[bytes]) -> None:
        """Kill a client at work in the third round, and start it again."""
        self.at_work("south", 3)
        south.kill()
        south.wait()
        self.client("south", **holding(self, "south", 6))

    def slow_down(self) -> None:
        """Hold a client up in its third training until the round goes on without it."""
        self.until(lambda: self.refused("east", "after the quorum of 2"), "a round without the slow one")
        hold(self, "east", 6)

    def be_late(self) -> None:
        """Wait until the slow client's answer to its third training is with the server."""
        self.until(lambda: self.log("east").count("train: done") >= 3, "a late answer")

    @contextmanager
    def cut_link(self, seconds: float) -> Iterator[None]:
        """Cut a client's link in its third training while other things go wrong.

        On a fast machine the others would be through all rounds meanwhile: they wait in the sixth.

        Args:
            seconds: For which it is cut at least.
        """
        self.at_work("north", 3)
        self.net["north"].line.cut = True
        end = time.monotonic() + seconds
        hold(self, "north")
        yield
        time.sleep(max(0.0, end - time.monotonic()))
        self.net["north"].line.cut = False
        for name in NAMES:
            hold(self, name)

    def kill_superlink(self) -> None:
        """Kill the SuperLink alone, in the fourth round."""
        self.at_work("attic", 4)
        hold(self, "attic", 6)
        os.kill(self.superlink(), signal.SIGKILL)
        self.until(lambda: "started again" in self.log("server"), "another SuperLink")
        self.one_more_round()

    def lose_power(self) -> None:
        """Kill all processes of the server's machine at once, and start the command again."""
        self.net["server"].power_off()
        self.server()
        self.one_more_round()

    def kill_server(self) -> None:
        """Kill the server's command, and start it again.

        A round that has no checkpoint yet is run again, and what happened in it goes with its record: another
        round wants to be over before.
        """
        self.servers[-1].kill()
        self.servers[-1].wait()
        self.server()

    def one_more_round(self) -> None:
        """Wait for the end of the round."""
        before = len(self.rounds())
        self.until(lambda: len(self.rounds()) > before, "one more round")

    def torment(self, cut: float) -> None:
        """Start everything and let everything go wrong, in ten rounds.

        Args:
            cut: Seconds for which a link is cut.
        """
        clients = self.start_all()
        self.kill_training(clients["north"])
        self.fill_disk(clients["attic"])
        with self.cut_link(cut):
            self.kill_client(clients["south"])
            self.slow_down()
            self.kill_superlink()
        self.lose_power()
        self.one_more_round()
        self.kill_server()

    def refused(self, name: str, text: str) -> bool:
        """Return whether a round's record refuses an answer of a client with such a sentence."""
        number = sorted(NAMES).index(name)
        refusals = [item for record in self.rounds() for item in record["refused"]]
        return any(item["client"] == number and text in item["reason"] for item in refusals)

    def missing_events(self, expected: Sequence[tuple[str, str]] = EVENTS) -> list[tuple[str, str]]:
        """Return what should stand in the report and does not."""
        page = html.unescape((self.out / "report.html").read_text())
        shown = [event for event in read_facts(RunFolder(self.out)).events if event.what in page]
        return [one for one in expected if not any(_is(event, *one) for event in shown)]


def _is(event: Event, client: str, text: str) -> bool:
    return event.client.partition(" ")[0] == client and text in event.what
