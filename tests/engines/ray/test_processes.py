"""The Ray engine from the command line: nothing is left running; a cluster may lose a node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXPERIMENT = """
name = "small"
rounds = 500
[data]
use = "digits"
[partition]
use = "dirichlet"
clients = 6
alpha = 0.5
[model]
use = "cnn"
width = 4
dense = 8
"""


def _start(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "small.toml").write_text(EXPERIMENT)
    command = [sys.executable, "-m", "fedvision.cli.main", "simulate", str(folder / "small.toml")]
    options = ["--engine", "ray", "--workers", "2", "--out", str(folder / "run")]
    return subprocess.Popen(
        command + options,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"RAY_TMPDIR": str(folder), "MARK_OF_THIS_TEST": str(folder)},
    )


def _alive(folder: Path) -> list[str]:
    """Return the command lines of processes that the run has started."""
    mark = f"MARK_OF_THIS_TEST={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return [line for line in found if line]


def _until(condition: object, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


BLOWS = {
    "two ctrl-c": [signal.SIGINT, signal.SIGINT],
    "term": [signal.SIGTERM],
    "kill": [signal.SIGKILL],
}


@pytest.mark.long
@pytest.mark.parametrize("blows", BLOWS.values(), ids=BLOWS)
def test_nothing_is_left_running_when_a_run_is_struck(blows: list[signal.Signals]) -> None:
    # Ray's sockets must have short paths; pytest's are too long.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="fv") as name:
        folder = Path(name)
        run = _start(folder)
        assert _until(lambda: (folder / "run" / "rounds.jsonl").exists(), 90), "no round was done"
        assert any("ray" in line for line in _alive(folder))
        for blow in blows:
            run.send_signal(blow)
            time.sleep(0.2)  # the first one is being cleaned up after
        out, _ = run.communicate(timeout=240)
        assert _until(lambda: not _alive(folder), 100), _alive(folder)
        if signal.SIGKILL not in blows:
            assert run.returncode == 130
            assert out.rstrip().endswith(b"--resume goes on from the last round")
            assert b"Traceback" not in out
            assert b"received" not in out, "Ray handles SIGTERM itself"
            assert json.loads((folder / "run/summary.json").read_text())["status"] == "stopped"


@pytest.mark.long
def test_a_cluster_that_loses_a_node_in_mid_round_ends_in_the_same_bits(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.engines.cluster_run", str(tmp_path)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["ray"] == found["serial"]
    assert any("a worker was lost" in sentence for sentence in found["notices"])
    assert found["refused"] == 0
