"""``fedvision certificates``: what it prints and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.cli import main


def test_sources_and_destinations_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["certificates", "keys", "--host", "fl.example.org", "--clients", "a", "b"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "keys/server/ -> the server's machine (--tls); server.key is secret",
        "keys/clients/a/ -> the machine of a; client.key is secret, delete it here afterwards",
        "keys/clients/b/ -> the machine of b; client.key is secret, delete it here afterwards",
        "keys/ca.key signs further certificates: keep it offline, with a copy",
    ]
    assert main.main(["certificates", "keys", "--clients", "c", "--mutual-tls"]) == 0
    assert "keys/server/clients/c.pub -> the server's folder of client keys" in capsys.readouterr().out
    assert (tmp_path / "keys/clients/c/tls.crt").is_file()


def test_a_second_time_is_an_error_of_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["certificates", str(tmp_path), "--host", "localhost", "--days", "7"]
    assert main.main(arguments) == 0
    assert main.main(arguments) == 2
    assert "it is there already and is not written over" in capsys.readouterr().err
