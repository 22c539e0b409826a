"""Streams: letters that an encoding lacks, a full disk, a closed pipe, a terminal that is gone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedvision import streams
from fedvision.errors import OutputError
from fedvision.runs.progress import Progress


def stream(monkeypatch: pytest.MonkeyPatch, name: str, encoding: str = "utf-8") -> io.BytesIO:
    """Put a stream under a name of ``sys`` and return what it writes to."""
    held = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(held, encoding=encoding, errors="strict"))
    return held


def full(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, name, open("/dev/full", "w"))


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", "– ± é 図 \\xe9 \\ud800"),
        ("latin-1", "- ± é \\u56f3 \\xe9 \\ud800"),
        ("ascii", "- +- \\xe9 \\u56f3 \\xe9 \\ud800"),
    ],
)
def test_letters_that_an_encoding_lacks(encoding: str, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = stream(monkeypatch, "stdout", encoding)
    streams.prepare()
    streams.show("– ± é 図 \udce9 \ud800")
    assert held.getvalue().decode(encoding) == written + "\n"


def test_closed_streams_ignore_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    streams.prepare()
    streams.show("shown")
    streams.complain("told")
    sys.stdout.close()
    sys.stderr.close()


def test_output_on_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, "stdout")
    with pytest.raises(OutputError) as caught:
        streams.show("a table", recorded="run/report.html")
    assert str(caught.value) == (
        "standard output could not be written: No space left on device; all of it is in run/report.html"
    )
    sys.stdout.close()  # what Python does as it exits: nothing is left to fail


def test_a_reader_that_has_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", open(writing, "w"))
    streams.show("a table")
    sys.stdout.close()


def test_progress_outlives_its_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, "stderr")
    progress = Progress()
    progress.start(1, 1)
    progress.round_done(1, {"train_loss": 1.0}, {"total": 1.0})
    progress.note("a sentence")
    sys.stderr.close()


def test_the_commands_own_exit_code_with_full_streams(tmp_path: Path) -> None:
    """Output that is lost is an error, an error's sentence that is lost is not one more; no traceback."""
    command = [sys.executable, "-m", "fedvision.cli.main", "list", "loss"]
    with open("/dev/full", "w") as nowhere:
        lost = subprocess.run(command, stdout=nowhere, stderr=subprocess.PIPE, text=True, check=False)
        silent = subprocess.run(
            [*command[:3], "inspect", str(tmp_path / "none.toml")], stderr=nowhere, check=False
        )
    expected = "fedvision: standard output could not be written: No space left on device\n"
    assert (lost.returncode, lost.stderr) == (1, expected)
    assert silent.returncode == 2
