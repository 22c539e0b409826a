"""Retention of run directories: nothing in use is removed, and a run without its state is refused."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path

import pytest

from fedvision.deployment.client import run_directories
from fedvision.deployment.client.run_directories import RunDirectories
from fedvision.errors import ConfigError

DAY_S = 86_400.0


def directory(folder: Path, run: str, days: float, *files: str) -> Path:
    """Make a run's directory that was last used so many days ago."""
    path = folder / run
    for file in files:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text("{}")
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))
    return path


@pytest.mark.parametrize("file", ["clients/000000/000000000/round-0000001", "masks.json", "counts.json"])
def test_a_run_whose_state_was_removed_is_refused(file: str, tmp_path: Path) -> None:
    path, runs = directory(tmp_path, "a1", 31, file, "images"), RunDirectories(tmp_path)
    runs.remove_unused(30, keep="b2")
    assert not path.exists()
    with pytest.raises(ConfigError, match="removed after retention_days without use"):
        runs.mark_used("a1")
    runs.mark_used("b2")


def test_a_run_without_state_can_be_resumed_after_its_removal(tmp_path: Path) -> None:
    path, runs = directory(tmp_path, "a1", 31, "images"), RunDirectories(tmp_path)
    runs.remove_unused(30, keep="b2")
    assert not path.exists()
    runs.mark_used("a1")
    assert list(tmp_path.iterdir()) == []


def test_runs_in_use_stay(tmp_path: Path) -> None:
    paths = [directory(tmp_path, run, days, "masks.json") for run, days in (("a", 31), ("b", 29), ("c", 400))]
    runs = RunDirectories(tmp_path)
    runs.remove_unused(0, keep="")
    runs.mark_used("a")  # each task of a run of many months
    runs.remove_unused(30, keep="c")
    assert all(path.exists() for path in paths)
    runs.remove_unused(30, keep="")
    assert [path.exists() for path in paths] == [True, True, False]


def test_a_missing_folder(tmp_path: Path) -> None:
    runs = RunDirectories(tmp_path / "runs")
    runs.remove_unused(30, keep="a")
    runs.mark_used("a")
    assert not (tmp_path / "runs").exists()


def test_a_directory_that_cannot_be_removed_is_said_and_never_trained_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, runs = directory(tmp_path, "a1", 31, "masks.json"), RunDirectories(tmp_path)

    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(run_directories.shutil, "rmtree", busy)
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        runs.remove_unused(30, keep="b2")
    assert caplog.messages == [f"{path} could not be removed: Device or resource busy"]
    with pytest.raises(ConfigError, match="removed after retention_days without use"):
        runs.mark_used("a1")
