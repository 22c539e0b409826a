"""A run in which everything goes wrong once ends by itself, and its report has all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedvision.deployment.certificates import make
from tests.deployment.server.chaos import EVENTS_OF_CLIENTS, NAMES, ChaosRun
from tests.deployment.server.machines import WAIT_S
from tests.deployment.server.network import network
from tests.deployment.server.training_barrier import hold

pytestmark = [pytest.mark.real_data, pytest.mark.long]


@pytest.fixture
def here(tmp_path: Path, far_pki: Path, raw: Path, request: pytest.FixtureRequest) -> Iterator[ChaosRun]:
    make(tmp_path / "pki", hosts=["10.77.0.1"], clients=NAMES)
    with network("server", *NAMES) as net:
        made = ChaosRun(tmp_path, tmp_path / "pki", raw, net, rounds=request.param, epochs=8)
        try:
            yield made
        finally:
            made.end()


def finish(here: ChaosRun, rounds: int) -> None:
    """Wait for the end: every round once, and a model that has learned."""
    assert here.servers[-1].wait(WAIT_S) == 0, here.log("server")
    assert [record["round"] for record in here.rounds()] == list(range(1, rounds + 1))
    assert here.rounds()[-1]["server"]["scores"]["accuracy"] > 0.5


@pytest.mark.parametrize("here", [9], indirect=True)
def test_bad_clients_and_a_killed_server(here: ChaosRun) -> None:
    clients = here.start_all()
    here.kill_training(clients["north"])
    here.fill_disk(clients["attic"])
    for name in ("north", "south", "attic"):
        hold(here, name, 6)
    here.slow_down()
    here.be_late()
    for name in NAMES:
        hold(here, name, 8)
    here.until(lambda: len(here.rounds()) > 6, "the seventh round")
    here.kill_server()
    for name in NAMES:
        hold(here, name)
    finish(here, 9)
    assert here.missing_events(EVENTS_OF_CLIENTS) == []


@pytest.mark.soak
@pytest.mark.parametrize("here", [10], indirect=True)
def test_everything_goes_wrong_once(here: ChaosRun) -> None:
    here.torment(cut=30)
    finish(here, 10)
    assert here.missing_events() == []
