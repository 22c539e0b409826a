"""Slow clients across machines: named, left in peace, their late answers used, after a kill too."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.deploy.machines import Machines, eventually, machines
from tests.deploy.test_server import EXPERIMENT

ROUND = """
[round]
deadline = {deadline}
late = "{late}"
"""


def stopped_child(here: Machines, client: Any) -> int:
    """Stop the client's training process once a round is recorded and return its number."""
    eventually(lambda: here.rounds() or here.processes[0].poll() is not None, "the first round")
    child = here.training_child(client)
    os.kill(child, signal.SIGSTOP)
    return child


def missed(here: Machines) -> list[dict[str, Any]]:
    """Return the records of the rounds that went on without client 0."""
    reason = "no answer by the deadline of 6 s"
    refusal = {"client": 0, "stage": "training", "reason": reason}
    return [record for record in here.rounds() if refusal in record["refused"]]


def test_a_slow_client_is_named_and_its_late_answer_used(tmp_path: Path, pki: Path) -> None:
    text = EXPERIMENT.format(rounds=10, epochs=1, strategy="fedavg")
    with machines(tmp_path, pki, text + ROUND.format(deadline=6, late="next-round")) as here:
        server = here.server()
        north, _ = here.client("north"), here.client("south")
        child = stopped_child(here, north)
        eventually(lambda: missed(here) or server.poll() is not None, "a round without north")
        os.kill(child, signal.SIGCONT)
        assert server.wait(180) == 0, here.log("server")
        (asked,) = [record["round"] for record in missed(here)]
        late = [(record["round"], item) for record in here.rounds() for item in record["late"]]
        ((used_in, item),) = late
        assert (item["client"], item["asked"], item["used"]) == (0, asked, True)
        assert item["weight"] == (1 + used_in - asked) ** -0.5
        # It was not asked while it was busy, and was asked again afterwards.
        between = here.rounds()[asked : used_in - 1]
        assert all(record["busy"] == [0] and record["clients"] == [1] for record in between)
        assert here.rounds()[-1]["clients"] == [0, 1]
        page = (here.out / "report.html").read_text()
        assert "north (0)" in page
        assert "no answer by the deadline of 6 s" in page
        assert f"asked in round {asked}, answered late, used with weight" in page
        assert "no answer by the deadline of 6 s" in here.log("server")


def test_a_server_that_was_killed_still_gets_what_it_was_owed(tmp_path: Path, pki: Path) -> None:
    text = EXPERIMENT.format(rounds=10, epochs=1, strategy="scaffold")
    with machines(tmp_path, pki, text + ROUND.format(deadline=6, late="next-round")) as here:
        server = here.server()
        north, _ = here.client("north"), here.client("south")
        child = stopped_child(here, north)
        eventually(lambda: missed(here) or server.poll() is not None, "a round without north")
        (asked,) = [record["round"] for record in missed(here)]
        # A server that is killed between a round's line and its checkpoint plays the round again.
        latest = here.out / "checkpoint/latest.json"
        eventually(lambda: json.loads(latest.read_text())["folder"] >= f"round-{asked:05d}", "its checkpoint")
        server.kill()
        server.wait()
        os.kill(child, signal.SIGCONT)
        again = here.server()
        assert again.wait(180) == 0, here.log("server")
        late = [item for record in here.rounds() for item in record["late"]]
        assert [(item["client"], item["asked"], item["used"]) for item in late] == [(0, asked, True)]
        assert [record["round"] for record in here.rounds()] == list(range(1, 11))
        assert "the run had been stopped or killed, and went on" in (here.out / "report.html").read_text()
