"""Keys and certificates that every test of this room shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.deploy.certificates import make


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server for localhost, and the clients north and south."""
    folder = tmp_path_factory.mktemp("pki")
    make(folder, hosts=["fl.example.org"], clients=["north", "south"], mutual_tls=True)
    return folder


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another federation's, of which nothing is known here."""
    folder = tmp_path_factory.mktemp("strangers")
    make(folder, hosts=["localhost"], clients=["stranger"], mutual_tls=True)
    return folder
