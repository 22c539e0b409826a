"""A client that is kept away: it tries again, and its log is no longer for that."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fedvision.deployment.server.options import SuperlinkOptions
from fedvision.deployment.server.superlink_process import SuperlinkProcess
from tests.deployment.server.machines import WAIT_S, Machines, eventually
from tests.deployment.server.test_deployment import EXPERIMENT

pytestmark = pytest.mark.long

ONLINE = "north is connected to"


def test_refusals_and_an_unstable_server_are_logged_once_a_minute(tmp_path: Path, pki: Path) -> None:
    requested_place = SuperlinkOptions(
        tls=pki / "server",
        clients=pki / "server/clients",
        state=tmp_path / "superlink",
        public="localhost:0",
        private="127.0.0.1:0",
    )
    here = Machines(tmp_path, pki, EXPERIMENT.format(rounds=1, epochs=1, strategy="fedavg"))
    server = SuperlinkProcess(requested_place)
    try:
        place = server.open()
        here.public = place.public.replace("127.0.0.1", "localhost")
        first = here.client("north")
        eventually(lambda: ONLINE in here.log("north"), "the first client")
        first_log = here.log("north")
        second = here.client("north", f'state = "{tmp_path}/elsewhere"')

        def twin() -> str:
            return here.log("north").removeprefix(first_log)

        def lines() -> int:
            start = ("is starting;", "training images")  # Log lines of every client before it connects.
            return sum(not any(text in line for text in start) for line in twin().splitlines())

        eventually(lambda: "the key counts as online" in twin(), "the second client's sentence")
        began = time.monotonic()
        time.sleep(6)
        assert lines() == 1, "some four attempts, one line"
        first.send_signal(signal.SIGTERM)
        assert first.wait(WAIT_S) == 0
        eventually(lambda: ONLINE in twin(), "the second client")
        assert re.search(r"the server is there again after \d+ s", twin())
        assert lines() == 3

        for _ in range(2):
            _kill(server)
            time.sleep(1.5)
            server = SuperlinkProcess(replace(requested_place, public=place.public, private=place.private))
            server.open()
            time.sleep(4)
        # It is back; it logged that it was away, and that it was back, less than a minute ago. Not so on a
        # machine that takes minutes for all this.
        minutes = 1 + int((time.monotonic() - began) / 60)
        assert twin().count("trying again") <= minutes
        assert lines() <= 3 * minutes
        assert second.poll() is None
    finally:
        here.end()
        server.stop()


def _kill(server: SuperlinkProcess) -> None:
    assert server._process
    server._process.kill()
    server._process.wait()
    assert server._process.stdin
    server._process.stdin.close()
