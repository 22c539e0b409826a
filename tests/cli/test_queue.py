"""``fedvision queue``: what is wrong is one sentence, when it is added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedvision.cli.main import main

EXPERIMENT = """
name = "night"
rounds = 2
[data]
use = "digits"
[model]
use = "cnn"
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "night.toml").write_text(EXPERIMENT)
    return tmp_path


def test_experiments_are_added_listed_and_removed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "list", "q"]) == 0
    assert capsys.readouterr().out == "q: no experiment was added\n"
    assert main(["queue", "add", "q", "night.toml", "--set", "rounds=7", "--wait-for", "3"]) == 0
    assert capsys.readouterr().out == f"1  night waits; its run folder will be {here}/runs/night\n"
    assert main(["queue", "list", "q", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert (entry["number"], entry["status"], entry["wait_for"], entry["folder"]) == (
        1,
        "waiting",
        3,
        str(here),
    )
    assert "rounds = 7" in json.loads((here / "q/0001.waiting.json").read_text())["experiment"]
    assert main(["queue", "remove", "q", "1"]) == 0
    assert capsys.readouterr().out == "1  night is removed\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["remove", "q", "4"], "there is no experiment 4 in the queue"),
        (["add", "q", "none.toml"], "none.toml: there is no such file"),
        (["add", "q", "night.toml", "--set", "model.use=cnnn"], "night.toml: [model] use = 'cnnn'"),
        (["add", "q", "night.toml", "--set", "data={use='npz', path='no.npz'}"], "no.npz"),
        (["add", "q", "night.toml", "--wait-for", "0"], "--wait-for must be >= 1"),
        (["add", "q", "night.toml", "night.toml", "--out", "x"], "--out: it is the folder of one run"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_adds_nothing(
    arguments: list[str], expected: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queue", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (here / "q").exists()


@pytest.mark.parametrize("arguments", [[], ["night.toml", "--queue", "q"]])
def test_a_server_runs_an_experiment_or_a_queue(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["server", *arguments, "--insecure", "--clients", "."]) == 2
    assert "name an experiment's TOML file, or a queue" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "rounds=3"], "--set: with --queue give this to `fedvision queue add`"),
        (["--out", "x", "--wait-for", "2"], "--wait-for, --out: with --queue give this to"),
        (["--watch", "8050"], "`fedvision watch RUN` shows one"),
        (["--token-file", "t"], "`fedvision watch RUN` shows one"),
    ],
)
def test_options_of_one_run_are_refused_beside_a_queue(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["server", "--queue", "q", *arguments, "--insecure", "--clients", "none"]) == 2
    assert expected in capsys.readouterr().err


def test_what_a_queue_is_to_write_may_teach_a_later_experiment(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "small.toml").write_text(
        EXPERIMENT.replace("night", "small")
        + '[strategy]\nuse = "distillation"\nteacher = "runs/night"\nalpha = 0.3\n'
    )
    assert main(["queue", "add", "q", "small.toml", "night.toml"]) == 2, "the teacher comes later"
    assert "runs/night cannot be read" in capsys.readouterr().err
    assert main(["queue", "add", "q", "night.toml", "small.toml"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"1  night waits; its run folder will be {here}/runs/night",
        f"2  small waits; its run folder will be {here}/runs/small; runs/night is read when its turn comes",
    ]
    assert main(["queue", "add", "q", "small.toml", "--set", "model.use=cnnn"]) == 2, (
        "the rest is checked now"
    )
    assert "[model] use = 'cnnn'" in capsys.readouterr().err
    text = json.loads((here / "q/0002.waiting.json").read_text())["experiment"]
    assert 'teacher = "runs/night"' in text
    assert "alpha = 0.3" in text


def test_a_run_folder_that_holds_something_else_is_refused_when_the_experiment_is_added(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file").write_text("")
    assert main(["queue", "add", "q", "night.toml", "--out", "file"]) == 2
    assert "--out file: this is no folder" in capsys.readouterr().err
    (here / "other").mkdir()
    (here / "other/note.txt").write_text("")
    assert main(["queue", "add", "q", "night.toml", "--out", "other"]) == 2
    assert "other: it has no config.toml" in capsys.readouterr().err
    assert not (here / "q").exists()


def test_a_file_in_the_place_of_the_queue_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "q").write_text("")
    for arguments in (["list", "q"], ["add", "q", "night.toml"], ["remove", "q", "1"]):
        assert main(["queue", *arguments]) == 2
        assert capsys.readouterr().err == "fedvision: q: this is no folder; name the queue's\n"
