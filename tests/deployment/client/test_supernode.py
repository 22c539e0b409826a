"""Flower's own client, beside ours and with the same file: real processes, the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deployment.server.machines import WAIT_S, digest, eventually, machines
from tests.deployment.server.test_deployment import EXPERIMENT

pytestmark = pytest.mark.long


def named(file: Path) -> list[str]:
    return ["--node-config", f'client="{file}"']


def test_stock_supernode_beside_our_client(tmp_path: Path, pki: Path) -> None:
    """A stock supernode trains beside our client to the simulation's bits."""
    with machines(tmp_path, pki, EXPERIMENT.format(rounds=2, epochs=1, strategy="scaffold")) as here:
        server = here.server()
        here.client("north")
        here.supernode("south", *named(here.client_file("south")))
        assert server.wait(WAIT_S) == 0, here.log("server") + here.log("south")
        assert digest(here.out) == here.simulated()
        assert [record["clients"] for record in here.rounds()] == [[0, 1]] * 2
        assert [record["refused"] for record in here.rounds()] == [[]] * 2
        assert "Failed" not in here.log("south")


def test_stock_supernode_that_cannot_take_part(tmp_path: Path, pki: Path) -> None:
    """A stock supernode that cannot take part gets a reason without paths."""
    with machines(tmp_path, pki, EXPERIMENT.format(rounds=1, epochs=1, strategy="fedavg")) as here:
        server = here.server("--wait-for", "1")
        here.supernode("south", *named(tmp_path / "nowhere.toml"))
        until = "south cannot take part: "
        eventually(lambda: until in here.log("server"), "the server's word")
        assert str(tmp_path) not in here.log("server").partition(until)[2].partition("\n")[0]
        here.client("north")
        assert server.wait(WAIT_S) == 0, here.log("server")
