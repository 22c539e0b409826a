"""What every test shares: one thread, so that times do not depend on other work; a cache; real images."""

from __future__ import annotations

import gzip
import html
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from fedvision.deployment.certificates import make
from fedvision.plugin_folder import allow_folder

# An example that a busy machine makes wait for 200 ms is no failure. What is tried is the same every time:
# a change is judged by what it changes, and `make search` tries something new.
_PATIENT = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("same", _PATIENT, derandomize=True)
hypothesis.settings.register_profile("new", _PATIENT, max_examples=500)
hypothesis.settings.load_profile("same")
# A shell that starts a command in the background lets it ignore Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["COLUMNS"] = "80"  # lines break at the same words in every terminal
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

_TOGETHER = {
    "tests/deployment/server/": "machines",
    "tests/deployment/client/": "machines",
    "test_internals_link.py": "machines",
    "tests/engines/ray/": "ray",
    "test_virtual_time.py": "ray",
    "test_parallel_runs.py": "parallel",
}
"""What tests that must not run at the same time have in their paths: networks, ports, Ray's processes."""
_DRAWN = (
    *("tests/reporting/", "tests/benchmarks/", "test_docs.py", "test_multilabel_runs.py"),
    *("test_member_register.py", "test_groups.py"),
)
"""What tests have in their paths that look at reports."""
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Gives tests of one group to one process, and all others as processes are free.

    xdist's own ``loadgroup`` reads marks that pytest 9.2 does not hand it: every test was a group of its own.
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((group for part, group in _TOGETHER.items() if part in nodeid), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """Distribute tests by their paths, whatever ``--dist`` is."""
    return Groups(config, log)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test with the same global random streams, whatever ran before it in its process."""
    import numpy as np  # Only now: both read OMP_NUM_THREADS as they are imported.
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """Take the modules of a test's folder out of the process after it."""
    yield
    allow_folder(None)


@pytest.fixture(autouse=True)
def quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out no picture but in tests of reports: that takes longer than the training of most tests."""
    if any(part in request.node.nodeid for part in _DRAWN):
        return
    from matplotlib.figure import Figure

    from fedvision.reporting import matrices, plots

    def draw(paint: Callable[[Any], None], *, name: str, alt: str, width: float, height: float) -> str:
        paint(Figure(figsize=(width / 72, height / 72)).add_subplot())
        return f'<svg class="picture" id="{name}" role="img" aria-label="{html.escape(alt)}"></svg>'

    monkeypatch.setattr(matrices, "draw", draw)
    monkeypatch.setattr(plots, "draw", draw)


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded images out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVISION_CACHE", str(tmp_path_factory.mktemp("decoded")))
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of one round."""
    from fedvision import simulate
    from tests.experiments import tiny

    path = tmp_path_factory.mktemp("trained") / "run"
    simulate(tiny(rounds=1), out=path)
    return path


@pytest.fixture
def finished(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of a finished run, into which a test may write."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("finished") / "run"))


@pytest.fixture(scope="session")
def fashion_mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the real Fashion-MNIST in torchvision's layout: ROOT/FashionMNIST/raw."""
    found = Path(os.environ.get("FEDVISION_DATA") or "~/.cache/fedvision").expanduser()
    if (found / "FashionMNIST/raw/train-images-idx3-ubyte").is_file():
        return found
    packed = sorted(_DEBIAN.glob("*-ubyte.gz"))
    if not packed:
        how = "apt-get install dataset-fashion-mnist, or point FEDVISION_DATA to FashionMNIST/raw's parent"
        if os.environ.get("FEDVISION_REQUIRE_DATA") == "1":
            pytest.fail(f"Fashion-MNIST is required and missing: {how}")
        pytest.skip(f"Fashion-MNIST is missing: {how}")
    root = tmp_path_factory.mktemp("fashion-mnist")
    raw = root / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for file in packed:
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    return root


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
