"""``fedvision doctor``: a page on standard output, a sentence on standard error, and the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.cli import main
from fedvision.deployment.certificates import make

CLIENT = """
name = "north"
device = "cpu"
[superlink]
address = "localhost:1"
root_certificate = "keys/clients/north/ca.crt"
key = "keys/clients/north/client.key"
[data]
use = "digits"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "keys", hosts=["localhost"], clients=["north"])
    (tmp_path / "client.toml").write_text(CLIENT)
    return tmp_path


def test_a_machine_that_is_not_ready_is_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor", "client.toml"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("fedvision doctor: client north\nOK    files")
    assert err == "fedvision: client.toml: 1 line says FAIL; this machine is not ready to join\n"


def test_a_machine_that_is_ready_is_0(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedvision.deployment.client import doctor
    from fedvision.deployment.client.connectivity import ProbeResult

    monkeypatch.setattr(doctor, "probe", lambda superlink: ProbeResult(0.1, 0.0, None))
    monkeypatch.setattr(doctor, "check_authorized", lambda superlink: None)
    assert main.main(["doctor", "client.toml"]) == 0
    out, err = capsys.readouterr()
    assert "FAIL" not in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.toml"], "none.toml: there is no such file; name a client's TOML file"),
        (["client.toml", "--set", "devise=cpu"], "client.toml: devise: there is no such key; did you mean"),
        (["client.toml", "--experiment", "none.toml"], "fedvision: none.toml: there is no such file"),
    ],
)
def test_a_wrong_file_is_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main.main(["doctor", *arguments]) == 2
    assert sentence in capsys.readouterr().err
