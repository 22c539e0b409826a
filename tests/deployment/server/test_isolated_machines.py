"""What must not change a bit: machines with an address each, and lines that are slow, lossy, or cut."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deployment.server.isolated_machines import Apart, apart
from tests.deployment.server.machines import WAIT_S, eventually
from tests.deployment.server.network import Line
from tests.deployment.server.training_barrier import hold

pytestmark = [pytest.mark.real_data, pytest.mark.long]
CUT_S = 30.0


def test_three_machines_end_in_the_simulations_bits(tmp_path: Path, far_pki: Path, raw: Path) -> None:
    with apart(tmp_path, far_pki, raw) as here:
        clients = here.everybody()
        here.finish()
        for client in clients:
            client.send_signal(signal.SIGTERM)
            assert client.wait(WAIT_S) == 0


def test_slow_lossy_throttled_and_cut_lines_change_no_bit(tmp_path: Path, far_pki: Path, raw: Path) -> None:
    with apart(tmp_path, far_pki, raw, rounds=4, epochs=3, width=16) as here:
        here.net["north"].line = Line(delay=0.2, loss=0.02)
        here.everybody(north=2, south=3)
        here.at_work("north", 2)
        here.net["north"].line = Line(rate=5e6)
        hold(here, "north")
        here.at_work("south", 3)
        here.net["south"].line.cut = True
        hold(here, "south")
        time.sleep(CUT_S)
        assert len(here.rounds()) == 2, "nobody goes on without the client"
        here.net["south"].line.cut = False
        here.finish(rounds=4)


@pytest.mark.soak
@pytest.mark.parametrize("line", [Line(delay=0.2, loss=0.02), Line(rate=5e6)], ids=["far", "throttled"])
def test_a_whole_run_over_a_bad_line(tmp_path: Path, far_pki: Path, raw: Path, line: Line) -> None:
    with apart(tmp_path, far_pki, raw, width=48) as here:
        here.net["north"].line = line
        here.everybody()
        here.finish()


@pytest.mark.soak
@pytest.mark.parametrize("how", ["cut", "unplugged"])
@pytest.mark.parametrize("when", ["training", "uploading"])
def test_a_link_that_is_away_for_half_a_minute(
    tmp_path: Path, far_pki: Path, raw: Path, how: str, when: str
) -> None:
    with apart(tmp_path, far_pki, raw, epochs=4, width=48) as here:
        south = here.net["south"]
        here.everybody(south=3)
        here.at_work("south", 3)
        if when == "uploading":
            south.line.rate = 1e6  # the reply takes seconds
            hold(here, "south")
            eventually((tmp_path / "state-south/inbox/session").exists, "the reply's first byte")
            time.sleep(0.5)
        with _away(here, how):
            hold(here, "south")
            time.sleep(CUT_S)
        assert len(here.rounds()) == 2
        south.line.rate = 0
        here.finish()


@contextmanager
def _away(here: Apart, how: str) -> Iterator[None]:
    south = here.net["south"]
    if how == "unplugged":
        south.unplug()
    else:
        south.line.cut = True
    yield
    if how == "unplugged":
        south.plug()
    south.line.cut = False
