"""``kill -9`` of every process and of a whole machine, one after the other in one run: the bits stay."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.deploy.apart import apart
from tests.deploy.machines import eventually

pytestmark = pytest.mark.real_data


def test_whatever_is_killed_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, far_pki: Path, raw: Path
) -> None:
    with apart(tmp_path, far_pki, raw, rounds=6, epochs=3) as here:
        _, south = here.everybody()
        machine = here.net["server"]

        here.working("north", after=1)
        os.kill(here.superlink(), signal.SIGKILL)
        eventually(lambda: "the SuperLink ended unexpectedly" in here.log("server"), "the server's word")

        here.working("south", after=2)
        south.kill()
        south.wait()
        here.client("south")

        here.working("north", after=3)
        machine.power_off()
        assert machine.processes() == []
        assert here.servers[-1].wait() == -signal.SIGKILL
        assert len(here.rounds()) == 3
        here.server()

        here.working("south", after=4)
        here.servers[-1].send_signal(signal.SIGTERM)
        assert here.servers[-1].wait(30) == 130
        assert machine.processes() == [], "the SuperLink ended with its server"
        assert json.loads((here.out / "summary.json").read_text())["status"] == "stopped"
        here.server()

        here.finish(rounds=6)


@pytest.mark.long
def test_a_server_that_slept_goes_on_by_itself(tmp_path: Path, far_pki: Path, raw: Path) -> None:
    with apart(tmp_path, far_pki, raw, rounds=4, epochs=3) as here:
        here.everybody()
        here.working("north", after=1)
        asleep = here.net["server"].processes()
        for number in asleep:
            os.kill(number, signal.SIGSTOP)
        time.sleep(75)
        for number in asleep:
            os.kill(number, signal.SIGCONT)
        here.finish(rounds=4)
        assert "the server was not heard of for 7" in (here.out / "report.html").read_text()
