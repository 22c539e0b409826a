"""The folder of a run that is given none: each run has its own, also of two that begin together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedvision import simulate
from fedvision.api import default_folder
from fedvision.errors import PluginError
from tests.experiments import tiny


def test_the_first_free_number_is_taken_and_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [default_folder("a", resume=False) for _ in range(3)]
    assert found == [Path("runs/a"), Path("runs/a-2"), Path("runs/a-3")]
    assert all(path.is_dir() for path in found)
    assert default_folder("a", resume=True) == Path("runs/a")
    assert default_folder("b", resume=True) == Path("runs/b")
    assert not Path("runs/b").exists()


def test_runs_that_begin_together_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: default_folder("a", resume=False), range(64)))
    assert len(set(found)) == 64


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError, match="there is no such engine"):
        simulate(tiny(), engine="steam")
    assert not Path("runs").exists()


def test_a_file_in_the_place_of_runs_is_left_to_whoever_writes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    assert default_folder("a", resume=False) == Path("runs/a")
