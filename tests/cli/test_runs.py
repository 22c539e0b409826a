"""``fedvision runs``, ``status`` and ``stop`` as an operator gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedvision.cli.main import main
from fedvision.config import ExperimentConfig
from fedvision.runs.events import BEGAN
from fedvision.runs.folder import RunFolder
from fedvision.runs.folder_lock import claimed
from fedvision.runs.stop_request import FILE

CONFIG = ExperimentConfig.from_dict({"name": "night", "rounds": 4, "data": {"use": "digits"}})
linux = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists the locks of others")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    made = RunFolder.create(tmp_path / "runs/night", CONFIG)
    made.append_event(1, BEGAN)
    return made


def test_runs_and_status_read_and_print(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.path.iterdir())
    assert main(["runs"]) == 0
    assert "runs/night" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 0
    assert main(["status"]) == 0
    assert capsys.readouterr().out.startswith("night: ")
    assert main(["status", "runs/night", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 4
    assert sorted(folder.path.iterdir()) == before
    (folder.path / "config.toml").unlink()
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "runs: there is no run in it\n"


@linux
@pytest.mark.parametrize(("options", "when"), [([], "after round 1"), (["--now"], "at once")])
def test_stop_asks_a_run_that_is_running(
    options: list[str], when: str, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(folder.path, ""):
        assert main(["stop", "runs/night", *options]) == 0
    assert f"night was asked to end {when};" in capsys.readouterr().out
    assert json.loads((folder.path / FILE).read_text())["now"] == bool(options)


@linux
def test_a_run_that_is_not_running_is_one_sentence(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stop", "runs/night"]) == 2
    assert capsys.readouterr().err == (
        "fedvision: runs/night: there is nothing to stop: this run is interrupted, 0 of 4 rounds\n"
    )
    folder.write_summary({"status": "finished"})
    with claimed(folder.path, ""):
        assert main(["stop", "runs/night"]) == 2
    assert "this run is finished" in capsys.readouterr().err
    assert not (folder.path / FILE).exists()


@pytest.mark.parametrize("verb", ["runs", "status", "stop"])
def test_no_such_folder_is_one_sentence(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no such folder" in line
