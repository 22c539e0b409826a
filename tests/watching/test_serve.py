"""The page as a process of its own: beside a run, with several viewers, killed, refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import httpx
import pytest

from fedvision.deployment.certificates import make
from fedvision.errors import ConfigError
from fedvision.runs.folder_lock import claimed
from fedvision.watching.serve import WatchOptions
from fedvision.watching.watch_process import WatchProcess
from tests.watching.sample import WrittenRun

EXPERIMENT = """
name = "small"
rounds = 6
data = "digits"
partition = { use = "dirichlet", clients = 4, alpha = 0.5 }
model = { use = "cnn", width = 4, dense = 8 }
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedvision.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def watching(path: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the page's address and its process."""
    process = start("watch", str(path), "--port", "0", *options)
    assert process.stdout
    try:
        yield process.stdout.readline().rpartition(": ")[2].strip(), process
    finally:
        process.kill()
        process.communicate()


class Viewer:
    """A connection that reads server-sent events; a context manager."""

    def __init__(self, address: str, last: str = "") -> None:
        self._client = httpx.Client(timeout=30, trust_env=False)
        request = self._client.build_request(
            "GET", f"{address}events", headers={"last-event-id": last} if last else {}
        )
        self._answer = self._client.send(request, stream=True)
        self._lines = self._answer.iter_lines()
        self.id = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._answer.close()
        self._client.close()

    def next(self) -> dict[str, str]:
        """Return the sections of the next event."""
        beats = 0
        for line in self._lines:
            beats += line.startswith(":")
            assert beats < 4, "nothing came for 45 s"
            if line.startswith("id: "):
                self.id = line[4:]
            elif line.startswith("data: "):
                found: dict[str, str] = json.loads(line[6:])["sections"]
                return found
        raise EOFError

    def until(self, words: str, section: str = "state") -> dict[str, str]:
        while words not in (found := self.next()).get(section, ""):
            pass
        return found


def get(address: str, path: str = "") -> tuple[int, str]:
    answer = httpx.get(f"{address}{path}", timeout=30, trust_env=False)
    return answer.status_code, answer.text


@pytest.mark.slow
def test_a_round_reaches_all_viewers_and_a_resumed_run_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with watching(path) as (address, _):
        assert "Waiting for the run" in get(address)[1]
        with Viewer(address) as one, Viewer(address) as two, claimed(path, ""):
            one.until("There is no run in")
            run = WrittenRun(path)
            run.begin()
            one.until("Round 1 of 10")
            run.round()
            file = path / "rounds.jsonl"
            half = json.dumps({"round": 2}).encode()
            with file.open("ab") as rounds:
                rounds.write(half)
            one.until("Round 2 of 10")
            assert "of 10 rounds done" in two.until("Round 2 of 10")["state"]
            run.round()  # cuts the half line away, as a run does that goes on
            one.until("Round 3 of 10")
            before = file.read_bytes().splitlines(keepends=True)
            os.truncate(file, len(before[0]))
            one.until("Round 2 of 10")
            last, run.done = one.id, 1
            one.close()
            run.round()
            with Viewer(address, last) as again:
                assert "spread" not in again.until("Round 3 of 10")
        status, text = get(address, "metrics")
        assert status == 200
        assert "\nfedvision_rounds_total 2\n" in text


def digest(path: Path) -> str:
    """Return a digest of all that a run wrote which does not tell the time."""
    names = ("rounds.jsonl", "split.json", "model.safetensors", "events.jsonl")
    return hashlib.sha256(b"".join((path / name).read_bytes() for name in names)).hexdigest()


@pytest.mark.slow
def test_a_run_has_the_same_bits_with_watchers_slow_and_killed_ones(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(EXPERIMENT)
    call = ["simulate", str(tmp_path / "small.toml"), "--engine", "serial", "--out"]
    alone, watched = tmp_path / "alone", tmp_path / "watched"
    first = start(*call, str(alone))
    first.communicate()
    assert first.returncode == 0
    with watching(watched) as (address, _), watching(watched) as (other, killed):
        with Viewer(address) as viewer, Viewer(other):
            run = start(*call, str(watched))
            viewer.until("of 6")
            killed.send_signal(signal.SIGKILL)
            run.communicate()
            assert run.returncode == 0
            viewer.until("All 6 rounds are done.")
    assert digest(alone) == digest(watched)
    written = {entry.name for entry in watched.iterdir()}
    assert written == {entry.name for entry in alone.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_page_at_once_although_somebody_looks(tmp_path: Path, number: int) -> None:
    WrittenRun(tmp_path / "run").begin()
    with watching(tmp_path / "run") as (address, process):
        with Viewer(address) as viewer:
            viewer.next()
            process.send_signal(number)
            out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert errors == "\nfedvision: stopped; the run goes on; the same command watches it again\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere/run"], "nowhere/run: there is no such folder, nor its parent nowhere"),
        (["run", "--port", "70000"], "--port: '70000' is no port"),
        (["run", "--host", "0.0.0.0"], "--host 0.0.0.0: others can reach it, so the page needs TLS"),
        (["run", "--host", "0.0.0.0", "--tls", "none"], "--tls: none/ca.crt cannot be read"),
        (["run", "--host", "0.0.0.0", "--tls", "none", "--insecure"], "leave one of them out"),
        (
            ["run", "--host", "no.such.host.invalid", "--insecure", "--port", "0"],
            "the page cannot be on no.such",
        ),
        (["run", "--host", "a..b", "--insecure"], "--host a..b: no machine can have this name"),
        (["run", "--token-file", "token"], "--token-file token: it can be read by other users"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fedvision.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("a-long-enough-token")
    (tmp_path / "token").chmod(0o644)
    monkeypatch.setattr("fedvision.cli.watch.treat_termination_as_ctrl_c", lambda: None)
    assert main.main(["watch", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fedvision: ")
    assert error.count("\n") == 1
    assert expected in error


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = start("watch", str(tmp_path / "run"), "--port", port)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith(
        f"fedvision: --port {port}: the page cannot be on 127.0.0.1: Address already in use"
    )
    assert "name another one" in errors


def test_a_page_for_others_has_tls_and_a_token_that_is_printed_once(tmp_path: Path) -> None:
    make(tmp_path / "pki", hosts=["localhost"], clients=[])
    options = ("--host", "0.0.0.0", "--tls", str(tmp_path / "pki/server"))
    with watching(tmp_path / "run", *options) as (address, _):
        assert re.fullmatch(r"https://[^/]+:\d+/\?token=[\w-]{32}", address)
        context = ssl.create_default_context(cafile=str(tmp_path / "pki/server/ca.crt"))
        port, token = int(re.findall(r":(\d+)/", address)[0]), address.partition("=")[2]

        def status(**headers: str) -> int:
            url = f"https://localhost:{port}/metrics"
            answer = httpx.get(url, verify=context, headers=headers, timeout=30, trust_env=False)
            return answer.status_code

        assert status() == 401
        assert status(authorization="Bearer wrong") == 401
        assert status(authorization=f"Bearer {token}") == 200


@pytest.mark.slow
def test_the_page_beside_a_server_ends_with_it(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run")
    run.begin()
    options = WatchOptions(run=tmp_path / "run", port=0)
    with ExitStack() as stack:
        page = stack.enter_context(WatchProcess(options))
        assert page.address.startswith("http://127.0.0.1:")
        assert "night shift" in get(page.address)[1]
        with Viewer(page.address) as viewer:
            viewer.next()
        assert page._process is not None
        assert page._process.stdin is not None
        page._process.stdin.close()  # as when the server is killed
        assert page._process.wait(60) == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"--watch: --port {port}: the page cannot be on"),
            WatchProcess(WatchOptions(run=tmp_path / "run", port=port)),
        ):
            raise AssertionError("the port was taken")
