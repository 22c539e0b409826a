"""Keys and certificates that every test of this room shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedvision.deployment.certificates import make
from fedvision.flower import internals
from tests.deployment.server.member_rooms import COUNTS
from tests.deployment.server.network import missing
from tests.deployment.server.superlink_links import FakeLink


@pytest.fixture(scope="session")
def spaces() -> None:
    """Leave out what needs machines with an address each where they cannot be made."""
    if why := missing():
        if os.environ.get("FEDVISION_REQUIRE_NETWORK") == "1":
            pytest.fail(f"machines with an address each are required: {why}")
        pytest.skip(why)


@pytest.fixture(scope="session")
def far_pki(spaces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server at 10.77.0.1, and the clients north and south."""
    folder = tmp_path_factory.mktemp("far-pki")
    make(folder, hosts=["10.77.0.1"], clients=["north", "south"])
    return folder


@pytest.fixture(scope="session")
def raw(fashion_mnist_root: Path) -> Path:
    """The folder of Fashion-MNIST's own files."""
    return fashion_mnist_root / "FashionMNIST/raw"


@pytest.fixture
def link() -> FakeLink:
    """A SuperLink as an object."""
    internals.identify(1)
    return FakeLink()


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority and the keys and certificates of all clients of ``COUNTS``."""
    folder = tmp_path_factory.mktemp("six")
    make(folder, hosts=["localhost"], clients=sorted(COUNTS))
    return folder
