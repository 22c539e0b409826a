"""``fedvision approve``: the owner's word, from another terminal than the client's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.cli.main import main
from fedvision.config import ExperimentConfig
from fedvision.deployment.client.approvals import Approvals

CLIENT = """
name = "north"
[superlink]
address = "localhost:1"
key = "client.key"
[data]
use = "digits"
[policy]
ask = true
"""
TEXT = ExperimentConfig.from_dict({"name": "two", "data": {"use": "digits"}}).to_toml()


def test_an_owner_lists_approves_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "client.toml"
    file.write_text(CLIENT)
    assert main(["approve", str(file)]) == 0
    assert capsys.readouterr().out == "no server has asked north for an experiment\n"
    approvals = Approvals(tmp_path / "state")
    assert approvals.request("two", TEXT) == "pending"
    assert main(["approve", str(file)]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("pending   two (sha256:")
    assert listed.rstrip().endswith(".pending.toml")
    assert main(["approve", str(file), "two"]) == 0
    assert capsys.readouterr().out.endswith(" is approved\n")
    assert approvals.request("two", TEXT) == "approved"
    assert main(["approve", str(file), "two", "--refuse"]) == 0
    assert approvals.request("two", TEXT) == "refused"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["three"], "no server has asked for an experiment 'three'"), (["--refuse"], "--refuse: name the")],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "client.toml"
    file.write_text(CLIENT)
    assert main(["approve", str(file), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
