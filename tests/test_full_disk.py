"""A disk that fills up while recording: a clear error, the last checkpoint intact, and a way on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedvision.runs.folder import RunFolder
from tests.test_resume import EXPERIMENT, command, digest

# No file may grow beyond the limit, as on a full disk: writes end in an OSError instead of a signal.
LIMITED = """
import resource, signal, sys
from fedvision.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.long
def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(EXPERIMENT)
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    # The history of the first rounds fits, that of all rounds does not; the model and the checkpoint fit.
    limit = (tmp_path / "whole/rounds.jsonl").stat().st_size * 2 // 3
    largest = max(path.stat().st_size for path in (tmp_path / "whole/checkpoint").rglob("*.safetensors"))
    assert largest < limit, "the test needs a model smaller than the history"
    arguments = command(tmp_path / "run")[3:]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert "rounds.jsonl" in error
    assert "disk" in error or "space" in error
    checkpoint = RunFolder.read(tmp_path / "run").checkpoints.load()
    assert checkpoint is not None
    assert 1 <= checkpoint.round < 120
    subprocess.run(command(tmp_path / "run"), check=True, capture_output=True)
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
