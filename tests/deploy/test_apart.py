"""What must not change a bit: machines with an address each, and lines that are slow, lossy, or cut."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedvision.deploy.certificates import make
from tests.deploy.apart import Apart, apart
from tests.deploy.machines import digest, eventually
from tests.deploy.network import Line, missing

pytestmark = pytest.mark.real_data
CUT_S = 30.0


@pytest.fixture(scope="module")
def far_pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server at 10.77.0.1, and the clients north and south."""
    if why := missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("far-pki")
    make(folder, hosts=["10.77.0.1"], clients=["north", "south"])
    return folder


@pytest.fixture(scope="module")
def raw(fashion_mnist_root: Path) -> Path:
    return fashion_mnist_root / "FashionMNIST/raw"


def finish(here: Apart, rounds: int = 5) -> None:
    """Wait for the run's end and check that nothing of it differs from a simulation."""
    assert here.processes[0].wait(180) == 0, here.log("server")
    assert [record["round"] for record in here.rounds()] == list(range(1, rounds + 1))
    assert [record["clients"] for record in here.rounds()] == [[0, 1]] * rounds
    assert [record["refused"] for record in here.rounds()] == [[]] * rounds
    assert digest(here.out) == here.simulated()


def test_three_machines_end_in_the_simulations_bits(tmp_path: Path, far_pki: Path, raw: Path) -> None:
    with apart(tmp_path, far_pki, raw) as here:
        here.server()
        clients = [here.client("north"), here.client("south")]
        finish(here)
        for client in clients:
            client.send_signal(signal.SIGTERM)
            assert client.wait(30) == 0


def working(here: Apart, name: str, after: int) -> None:
    """Wait until a client has a task in work, some rounds having been done."""
    task, server = here.folder / f"state-{name}/inbox/task", here.processes[0]
    eventually(lambda: len(here.rounds()) >= after or server.poll() is not None, f"{after} rounds")
    eventually(lambda: task.exists() or server.poll() is not None, "a task")
    assert server.poll() is None, here.log("server")


def test_slow_lossy_throttled_and_cut_lines_change_no_bit(tmp_path: Path, far_pki: Path, raw: Path) -> None:
    with apart(tmp_path, far_pki, raw, rounds=4, epochs=3, width=16) as here:
        here.net["north"].line = Line(delay=0.2, loss=0.02)
        here.server()
        here.client("north")
        here.client("south")
        working(here, "north", after=1)
        here.net["north"].line = Line(rate=5e6)
        working(here, "south", after=2)
        here.net["south"].line.cut = True
        time.sleep(CUT_S)
        assert len(here.rounds()) == 2, "nobody goes on without the client"
        here.net["south"].line.cut = False
        finish(here, rounds=4)


def _started(here: Apart) -> None:
    here.server()
    here.client("north")
    here.client("south")


@pytest.mark.long
@pytest.mark.parametrize("line", [Line(delay=0.2, loss=0.02), Line(rate=5e6)], ids=["far", "throttled"])
def test_a_whole_run_over_a_bad_line(tmp_path: Path, far_pki: Path, raw: Path, line: Line) -> None:
    with apart(tmp_path, far_pki, raw, width=48) as here:
        here.net["north"].line = line
        _started(here)
        finish(here)


@pytest.mark.long
@pytest.mark.parametrize("how", ["cut", "unplugged"])
@pytest.mark.parametrize("when", ["training", "uploading"])
def test_a_link_that_is_away_for_half_a_minute(
    tmp_path: Path, far_pki: Path, raw: Path, how: str, when: str
) -> None:
    with apart(tmp_path, far_pki, raw, epochs=4, width=48) as here:
        south = here.net["south"]
        _started(here)
        working(here, "south", after=2)
        if when == "uploading":
            south.line.rate = 1e6  # the reply takes seconds
            eventually((tmp_path / "state-south/inbox/session").exists, "the reply's first byte")
            time.sleep(0.5)
        before = len(here.rounds())
        with _away(here, how):
            time.sleep(CUT_S)
        assert len(here.rounds()) == before
        south.line.rate = 0
        finish(here)


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
