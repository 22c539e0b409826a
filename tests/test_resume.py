"""``kill -9`` and Ctrl-C of the real process at random moments; --resume ends in the same bits."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import paused

EXPERIMENT = """
name = "small"
rounds = 120
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
[strategy]
use = "scaffold"
fraction = 0.5
[evaluation]
holdout = 0.2
with_training = true
[[update]]
use = "top-k"
fraction = 0.05
[loss]
use = "tests.paused:PausedCrossEntropy"
"""
ROOT = Path(__file__).parent.parent


def command(folder: Path) -> list[str]:
    out = ["--out", str(folder), "--resume", "--threads", "1", "--engine", "serial"]
    return [sys.executable, "-m", "fedvision.cli.main", "simulate", str(folder.parent / "small.toml"), *out]


def digest(folder: Path) -> str:
    files = ("model.safetensors", "rounds.jsonl", "split.json")
    return hashlib.sha256(b"".join((folder / file).read_bytes() for file in files)).hexdigest()


@pytest.mark.parametrize(
    ("blow", "times"),
    [
        pytest.param(signal.SIGKILL, 2, id="kill", marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, 6, id="kill-often", marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 6, id="ctrl-c-often", marks=pytest.mark.long),
    ],
)
def test_a_run_struck_at_random_moments_ends_in_the_same_bits(
    blow: signal.Signals, times: int, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(EXPERIMENT.replace("rounds = 120", f"rounds = {12 * times}"))
    subprocess.run(command(tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True)
    rng = random.Random(int(blow))
    struck = tmp_path / "struck"
    blows = sum(_strike(struck, blow, rng.uniform(0, 0.06)) for _ in range(times))
    assert blows == times, "the run is too short to be struck so often"
    subprocess.run(command(struck), cwd=ROOT, check=True, capture_output=True)
    assert digest(struck) == digest(tmp_path / "whole")


def _strike(folder: Path, blow: signal.Signals, delay: float) -> bool:
    """Run on in the folder, strike after one more round and a while; return whether it was still running."""
    with subprocess.Popen(
        command(folder),
        cwd=ROOT,
        env=os.environ | {paused.SECONDS: "0.02"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _wait_for_a_line_more(folder, process)
        time.sleep(delay)
        process.send_signal(blow)
        _, error = process.communicate(timeout=240)
    if blow is signal.SIGINT and process.returncode != 0:
        assert process.returncode == 130
        assert "--resume" in error
        assert "Traceback" not in error
    return process.returncode != 0


def _wait_for_a_line_more(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the process has written at least one round of its own, or ended."""
    history = folder / "timings.jsonl"
    before = history.stat().st_mtime_ns if history.exists() else 0
    while process.poll() is None:
        if history.exists() and history.stat().st_mtime_ns > before:
            return
        time.sleep(0.005)
