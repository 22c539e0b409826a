"""``fedvision card``: writes the card, says where, and refuses in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.cli.main import main
from tests.reporting.conftest import make_run as make_run
from tests.reporting.sample import MakeRun


def test_card_writes_and_names_the_file(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run().path
    assert main(["card", str(folder), "--license", "cc-by-4.0", "--name", "Digits"]) == 0
    assert capsys.readouterr().out == f"model card: {folder}/model_card.md\n"
    text = (folder / "model_card.md").read_text()
    assert 'license: "cc-by-4.0"' in text
    assert "\n# Digits\n" in text
    assert main(["card", str(folder)]) == 0  # the options of the card that is there
    assert (folder / "model_card.md").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--license", "my licence"], 2, "--license must be an identifier such as apache-2.0"),
        (["--out", "nowhere/card.md"], 2, "there is no folder nowhere"),
        (["--out", "."], 2, "this is a folder"),
        (["--out", "notes.md"], 2, "no model card as fedvision wrote it"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str],
    code: int,
    expected: str,
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_run().path
    monkeypatch.chdir(tmp_path)
    Path("notes.md").write_text("mine")
    assert main(["card", str(folder), *arguments]) == code
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert Path("notes.md").read_text() == "mine"
    assert not (folder / "model_card.md").exists()


def test_a_place_that_takes_no_file_is_named(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run().path
    assert main(["card", str(folder), "--out", "/proc/card.md"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fedvision: /proc/card.md: the model card could not be written: ")
    assert error.endswith("; name another file with --out\n")


def test_no_run_no_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(tmp_path / "none")]) == 2
    assert "there is no such folder; name a folder that a run has written" in capsys.readouterr().err
