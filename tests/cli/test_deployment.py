"""What is wrong with what a person typed: one sentence, exit code 2, and nothing was started or written."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedvision.cli import main
from fedvision.deployment.certificates import make

EXPERIMENT = """
rounds = 1
[data]
use = "elsewhere"
classes = ["a", "b"]
height = 8
width = 8
"""
BEGUN = re.compile(r"fedvision \d|[ \d]{3}\.\d s  ")
"""How the lines begin that tell what a command is busy with."""
CLIENT = """
name = "north"
[superlink]
address = "localhost:1"
key = "client.key"
root_certificate = "ca.crt"
retry_for = 0.1
[data]
use = "npz"
path = "own.npz"
"""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    make(folder, hosts=["localhost"], clients=["north"])
    return folder


@pytest.fixture
def here(tmp_path: Path, pki: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    (tmp_path / "bad.toml").write_text("rounds = ")
    (tmp_path / "odd.toml").write_text("ronds = 3")
    (tmp_path / "pki").symlink_to(pki)
    (tmp_path / "file").write_text("")
    for name in ("client.key", "ca.crt"):
        (tmp_path / name).symlink_to(pki / "clients/north" / name)
    (tmp_path / "own.npz").write_text("")
    return tmp_path


def error_of(capsys: pytest.CaptureFixture[str], command: str, code: int = 2) -> str:
    """Run a command line that is wrong and return its one sentence, which comes after what was begun."""
    assert main.main(command.split()) == code
    *begun, text = capsys.readouterr().err.splitlines(keepends=True)
    assert text.startswith("fedvision: ")
    assert [line for line in begun if not BEGUN.match(line)] == []
    return text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("none.toml --tls pki/server", "none.toml: there is no such file"),
        ("bad.toml --tls pki/server", "bad.toml: this is no TOML"),
        ("odd.toml --tls pki/server", "odd.toml: ronds: there is no such key; did you mean 'rounds'?"),
        ("e.toml", "fedvision: --tls: name the folder with ca.crt, server.crt and server.key"),
        ("e.toml --insecure", "fedvision: --clients: name the folder"),
        ("e.toml --tls pki/server --insecure", "leave one of them out"),
        ("e.toml --tls nowhere", "nowhere/ca.crt: it cannot be read: No such file"),
        ("e.toml --tls pki/server --wait-for 0", "fedvision: --wait-for must be >= 1, not 0"),
        ("e.toml --tls pki/server --public 8443", "'8443' is no HOST:PORT, such as 0.0.0.0:8443"),
        ("e.toml --tls pki/server --private 0.0.0.0:1", "it must be a loopback address"),
        ("e.toml --tls pki/server --set training.lr=x", "training.lr must be a number, not 'x'"),
        ("e.toml --tls pki/server --state file/x", "fedvision: --state"),
        ("e.toml --tls pki/server --out file/x", "the run folder cannot be written"),
        ("none.toml --tls pki/server --watch x", "fedvision: --watch: 'x' is no port"),
        ("none.toml --tls pki/server --watch 127.0.0.1:99999", "fedvision: --watch: '99999' is no port"),
        ("none.toml --tls pki/server --token-file t", "fedvision: --token-file: it is for the page on"),
    ],
)
def test_a_wrong_server_command(
    here: Path, capsys: pytest.CaptureFixture[str], options: str, sentence: str
) -> None:
    assert sentence in error_of(capsys, f"server {options}")
    assert not (here / "superlink").exists()


@contextlib.contextmanager
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield held.getsockname()[1]


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvision.deployment.server.superlink_process._PORT_S", 0.0)
    with taken() as port:
        public = f"--private 127.0.0.1:0 --public 127.0.0.1:{port}"
        text = error_of(capsys, f"server e.toml --tls pki/server {public}")
    assert f"--public 127.0.0.1:{port}: it cannot listen there: Address already in use" in text
    assert "a server that still runs, or another program, has the port" in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("e.toml --state nowhere", "--state nowhere: there is no SuperLink's secret"),
        ("e.toml --state kept --tls nowhere", "nowhere/ca.crt cannot be read; name the server's folder"),
        ("e.toml --state kept --tls pki/server --private 127.0.0.1:1", "no SuperLink answers there; start"),
        ("none.toml --state kept --tls pki/server --private 127.0.0.1:1", "none.toml: there is no such file"),
    ],
)
def test_a_wrong_submit_command(
    here: Path, capsys: pytest.CaptureFixture[str], options: str, sentence: str
) -> None:
    (here / "kept").mkdir()
    (here / "kept/secret").write_text("s")
    assert sentence in error_of(capsys, f"submit {options}")
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("", ""), "own.npz is no OpenSSH private key"),
        (('"localhost:1"', '"localhost"'), "superlink.address must be HOST:PORT"),
        (('key = "client.key"', 'key = "nokey"'), "nokey cannot be read: No such file"),
        (('root_certificate = "ca.crt"', 'root_certificate = "own.npz"'), "own.npz cannot be used"),
        (('"npz"', '"npy"'), "client.toml: [data] use = 'npy'"),
        (('path = "own.npz"', 'path = "gone.npz"'), "client.toml: data.path: there is no"),
        (('path = "own.npz"', 'pth = "own.npz"'), "did you mean 'path'?"),
        (('"north"', '"a b"'), "name must be of letters"),
        (("[data]", '[share]\ncounts = "masked"\n[data]'), "share.certificate must name"),
    ],
)
def test_a_wrong_client_file(
    here: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], sentence: str
) -> None:
    text = CLIENT.replace(*change) if change[0] else CLIENT.replace("client.key", "own.npz")
    assert text != CLIENT
    (here / "client.toml").write_text(text)
    assert sentence in error_of(capsys, "client client.toml")


def test_a_client_without_a_file_or_with_another_address(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "none.toml: there is no such file; name a client's TOML" in error_of(capsys, "client none.toml")
    (here / "client.toml").write_text(CLIENT)
    text = error_of(capsys, "client client.toml --superlink 8443")
    assert "superlink.address must be HOST:PORT such as fl.example.org:8443, not '8443'" in text
