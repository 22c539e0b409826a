"""Semi-asynchronous rounds across machines: the model moves with whoever answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deployment.server.machines import WAIT_S, eventually, machines
from tests.deployment.server.test_deployment import EXPERIMENT
from tests.deployment.server.training_barrier import hold, holding

pytestmark = pytest.mark.long

BUFFER = """
[round]
buffer = 1
"""


def test_the_model_moves_on_while_a_client_is_at_work(tmp_path: Path, pki: Path) -> None:
    text = EXPERIMENT.format(rounds=12, epochs=1, strategy="scaffold")
    with machines(tmp_path, pki, text + BUFFER) as here:
        server = here.server()
        here.client("north", **holding(here, "north", 1))
        here.client("south", **holding(here, "south", 5))
        eventually(lambda: len(here.rounds()) == 4 or server.poll() is not None, "four rounds")
        assert [record["clients"] for record in here.rounds()] == [[1]] * 4, "south alone"
        hold(here, "north")
        eventually(lambda: len(here.rounds()) > 4 or server.poll() is not None, "north's answer")
        hold(here, "south")
        assert server.wait(WAIT_S) == 0, here.log("server")
        records = here.rounds()
        assert [len(record["clients"]) for record in records] == [1] * 12
        assert records[4]["clients"] == [0]
        (late,) = [item for item in records[4]["late"] if item["client"] == 0]
        assert (late["requested"], late["used"], late["weight"]) == (1, True, (1 + 4) ** -0.5)
        assert {client for record in records[5:] for client in record["clients"]} == {0, 1}
