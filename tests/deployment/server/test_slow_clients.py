"""Slow clients across machines: named, left in peace, their late answers used, after a kill too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.deployment.server.machines import WAIT_S, Machines, eventually, machines
from tests.deployment.server.test_deployment import EXPERIMENT
from tests.deployment.server.training_barrier import begun, hold, holding

pytestmark = pytest.mark.long

ROUND = """
[round]
deadline = {deadline}
late = "{late}"
"""


def missed(here: Machines) -> bool:
    """Return whether the second round went on without client 0."""
    reason = "no answer by the deadline of 10 s"
    refused = [one for record in here.rounds()[1:2] for one in record["refused"]]
    return any((one["client"], one["stage"], one["reason"]) == (0, "training", reason) for one in refused)


def test_a_slow_client_is_named_and_its_late_answer_used(tmp_path: Path, pki: Path) -> None:
    text = EXPERIMENT.format(rounds=10, epochs=1, strategy="fedavg")
    with machines(tmp_path, pki, text + ROUND.format(deadline=10, late="next-round")) as here:
        server = here.server()
        here.client("north", **holding(here, "north", 2))
        here.client("south")
        eventually(lambda: missed(here) or server.poll() is not None, "a round without north")
        hold(here, "north")
        assert server.wait(WAIT_S) == 0, here.log("server")
        late = [(record["round"], item) for record in here.rounds() for item in record["late"]]
        ((used_in, item),) = late
        assert (item["client"], item["requested"], item["used"]) == (0, 2, True)
        assert item["weight"] == (1 + used_in - 2) ** -0.5
        # It was not selected while it was busy, and was selected again afterwards.
        between = here.rounds()[2 : used_in - 1]
        assert all(record["busy"] == [0] and record["clients"] == [1] for record in between)
        assert here.rounds()[-1]["clients"] == [0, 1]
        page = (here.out / "report.html").read_text()
        assert "north (0)" in page
        assert "no answer by the deadline of 10 s" in page
        assert "requested in round 2, answered late, used with weight" in page
        assert "no answer by the deadline of 10 s" in here.log("server")


def test_a_server_that_was_killed_still_gets_what_it_was_owed(tmp_path: Path, pki: Path) -> None:
    text = EXPERIMENT.format(rounds=20, epochs=1, strategy="scaffold")
    with machines(tmp_path, pki, text + ROUND.format(deadline=10, late="next-round")) as here:
        server = here.server()
        here.client("north", **holding(here, "north", 2))
        here.client("south")
        eventually(lambda: missed(here) or server.poll() is not None, "a round without north")
        # A server that is killed between a round's line and its checkpoint plays the round again.
        latest = here.out / "checkpoint/latest.json"
        eventually(lambda: json.loads(latest.read_text())["folder"] >= "round-00002", "its checkpoint")
        server.kill()
        server.wait()
        played = len(here.rounds())
        again = here.server()
        # It knows what north has, and plays on while north is still at work.
        eventually(lambda: len(here.rounds()) > played + 1 or again.poll() is not None, "two more rounds")
        hold(here, "north")
        assert again.wait(WAIT_S) == 0, here.log("server")
        late = [item for record in here.rounds() for item in record["late"]]
        # South may be late, too, on a busy machine.
        assert [item["used"] for item in late if (item["client"], item["requested"]) == (0, 2)] == [True]
        assert "train: this task was done before; the same reply is sent" in here.log("north")
        assert begun(here, "north").count(2) == 1
        assert [record["round"] for record in here.rounds()] == list(range(1, 21))
        assert "the run had been stopped or killed, and went on" in (here.out / "report.html").read_text()
