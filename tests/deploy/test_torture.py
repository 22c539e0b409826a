"""A run in which everything goes wrong once ends by itself, and its report tells all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.deploy.certificates import make
from tests.deploy.network import network
from tests.deploy.torture import NAMES, Torture

pytestmark = pytest.mark.real_data


def test_a_run_in_which_everything_goes_wrong(tmp_path: Path, far_pki: Path, raw: Path) -> None:
    make(tmp_path / "pki", hosts=["10.77.0.1"], clients=NAMES)
    with network("server", *NAMES) as net:
        here = Torture(tmp_path, tmp_path / "pki", raw, net, rounds=10, epochs=8)
        try:
            here.torment(cut=20)
            assert here.servers[-1].wait(300) == 0, here.log("server")
        finally:
            here.end()
        assert [record["round"] for record in here.rounds()] == list(range(1, 11))
        assert here.untold() == []
