"""``kill -9`` of every process and of a whole machine, one after the other in one run: the bits stay."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.deployment.server.isolated_machines import apart
from tests.deployment.server.machines import WAIT_S, eventually
from tests.deployment.server.training_barrier import hold, holding

pytestmark = [pytest.mark.real_data, pytest.mark.long]


def test_whatever_is_killed_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, far_pki: Path, raw: Path
) -> None:
    with apart(tmp_path, far_pki, raw, rounds=6, epochs=3) as here:
        _, south = here.everybody(north=2, south=3)
        machine = here.net["server"]

        here.at_work("north", 2)
        os.kill(here.superlink(), signal.SIGKILL)
        eventually(lambda: "the SuperLink ended unexpectedly" in here.log("server"), "the server's word")
        hold(here, "north", 4)

        here.at_work("south", 3)
        south.kill()
        south.wait()
        here.client("south", **holding(here, "south", 5))

        here.at_work("north", 4)
        machine.power_off()
        assert machine.processes() == []
        assert here.servers[-1].wait() == -signal.SIGKILL
        assert len(here.rounds()) == 3
        hold(here, "north")
        here.server()

        here.at_work("south", 5)
        here.servers[-1].send_signal(signal.SIGTERM)
        assert here.servers[-1].wait(WAIT_S) == 130
        assert machine.processes() == [], "the SuperLink ended with its server"
        assert json.loads((here.out / "summary.json").read_text())["status"] == "stopped"
        assert len(here.rounds()) == 4
        hold(here, "south")
        here.server()

        here.finish(rounds=6)


@pytest.mark.soak
def test_a_server_that_slept_goes_on_by_itself(tmp_path: Path, far_pki: Path, raw: Path) -> None:
    with apart(tmp_path, far_pki, raw, rounds=4, epochs=3) as here:
        here.everybody(north=2)
        here.at_work("north", 2)
        asleep = here.net["server"].processes()
        for number in asleep:
            os.kill(number, signal.SIGSTOP)
        hold(here, "north")
        time.sleep(75)
        for number in asleep:
            os.kill(number, signal.SIGCONT)
        here.finish(rounds=4)
        page = (here.out / "report.html").read_text()
        assert re.search(r"the server sent no heartbeat for [789]\d s", page)
