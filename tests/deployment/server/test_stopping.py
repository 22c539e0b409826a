"""``fedvision stop`` of a server: after its round, or while it waits; and it goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.cli.main import main
from fedvision.reporting.run_overview import run_page
from fedvision.runs.folder import RunFolder
from fedvision.runs.stop_request import FILE
from fedvision.runs.waiting import FILE as WAITING
from tests.deployment.server.machines import WAIT_S, digest, eventually, machines
from tests.deployment.server.test_deployment import EXPERIMENT
from tests.deployment.server.training_barrier import begun, hold, holding

STOPPED = 130


@pytest.mark.long
def test_a_stopped_server_ends_after_its_round_and_goes_on_to_the_same_bits(
    tmp_path: Path, pki: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """South is held in round 2 until the request is made, so that it is made in the middle of a round."""
    text = EXPERIMENT.format(rounds=4, epochs=1, strategy="scaffold").replace(
        "rounds = 4", "rounds = 4\ncheckpoint_every = 3"
    )
    with machines(tmp_path, pki, text) as here:
        expected = here.simulated()
        server = here.server()
        here.client("north")
        here.client("south", **holding(here, "south", 2))
        eventually(lambda: 2 in begun(here, "south"), "south trains in round 2")
        assert main(["stop", str(here.out)]) == 0
        assert "was asked to end after round 2;" in capsys.readouterr().out
        hold(here, "south")
        assert server.wait(WAIT_S) == STOPPED, here.log("server")
        folder = RunFolder.read(here.out)
        assert (len(folder.rounds()), folder.summary()["status"]) == (2, "stopped")
        assert folder.events()[-1]["what"] == "stopped by the operator after round 2"
        assert not (here.out / FILE).exists()
        server = here.server()
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == expected
        assert "going on at round 3 of 4" in here.log("server")


@pytest.mark.slow
def test_a_server_that_waits_for_clients_ends_at_once(tmp_path: Path, pki: Path) -> None:
    with machines(tmp_path, pki, EXPERIMENT.format(rounds=2, epochs=1, strategy="fedavg")) as here:
        server = here.server()
        eventually(lambda: "waiting: 0 of 2 clients" in here.log("server"), "the server waits")
        waiting = "waiting: 0 of 2 clients; north was never here; south was never here"
        assert run_page(here.out, 0.0)["waiting"] == waiting
        assert main(["stop", str(here.out)]) == 0
        assert server.wait(WAIT_S) == STOPPED, here.log("server")
        assert not (here.out / WAITING).exists()
        assert RunFolder.read(here.out).summary() == {"status": "stopped", "rounds": 0}
