"""What a server's SuperLink keeps is its owner's alone."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from fedvision.deployment.server import superlink_process
from fedvision.deployment.server.limits import Limits
from fedvision.deployment.server.options import SuperlinkOptions
from fedvision.deployment.server.superlink_process import SuperlinkProcess, notice_while
from fedvision.errors import ConfigError, RunError
from fedvision.runs.folder_lock import claimed


def test_the_state_folder_and_the_secret_are_the_owners_alone(tmp_path: Path) -> None:
    place = SuperlinkOptions(insecure=True, clients=tmp_path, state=tmp_path / "superlink")
    with claimed(place.state, "name another one"):
        secret = place.secret()
    assert place.secret() == secret
    assert len(secret) == 64
    assert place.state.stat().st_mode & 0o777 == 0o700
    assert (place.state / "secret").stat().st_mode & 0o777 == 0o600


def test_a_secret_whose_writing_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    """An empty one would let every process on the machine be the run's server."""
    place = SuperlinkOptions(insecure=True, clients=tmp_path, state=tmp_path / "superlink")
    place.state.mkdir()
    (place.state / "secret").touch(0o600)
    assert len(place.secret()) == 64
    assert (place.state / "secret").stat().st_mode & 0o777 == 0o600


def test_a_slow_start_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    called, times = threading.Event(), list[int]()

    def what() -> str:
        times.append(1)
        if len(times) == 3:
            called.set()
        return "it has not started"

    monkeypatch.setattr(superlink_process, "_NOTICE_AFTER_S", 0.01)
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        with notice_while(what):
            assert called.wait(60)
    assert len(caplog.messages) >= 2
    assert re.fullmatch(r"it has not started \(waiting since \d+ s\)", caplog.messages[0])


def test_a_start_that_fails_ends_the_waiting() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="no"), notice_while(str):
        raise ValueError("no")
    assert set(threading.enumerate()) <= before


def test_options_survive_serialisation(tmp_path: Path) -> None:
    asked = SuperlinkOptions(
        tls=tmp_path, clients=tmp_path / "c", state=tmp_path / "s", limits=Limits(body=7)
    )
    plain = SuperlinkOptions(insecure=True, clients=tmp_path, state=tmp_path, public="[::]:0")
    assert [SuperlinkOptions.from_text(given.to_text()) for given in (asked, plain)] == [asked, plain]


@pytest.mark.parametrize(
    ("logged", "sentence"),
    [
        (
            "fedvision: PKI/server.key: this is no key\n",
            "the SuperLink did not start: PKI/server.key: this is no key",
        ),
        ("", "the SuperLink did not start: it said nothing"),
    ],
)
def test_a_superlink_that_ends_at_once_says_why(
    logged: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SuperlinkOptions(insecure=True, clients=tmp_path, state=tmp_path, private="127.0.0.1:0")
    process = SuperlinkProcess(place)

    def ends() -> None:
        place.log.write_text(logged)

    monkeypatch.setattr(process, "_try", ends)
    with pytest.raises(ConfigError) as error:
        process.open()
    assert str(error.value) == sentence


def test_a_port_of_a_server_that_ended_just_now_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SuperlinkOptions(insecure=True, clients=tmp_path, state=tmp_path, private="127.0.0.1:0")
    process, waited = SuperlinkProcess(place), list[float]()
    place.log.write_text("fedvision: --public 127.0.0.1:1: it cannot listen there: Address already in use\n")
    answer = {"private": "127.0.0.1:2", "public": "127.0.0.1:3", "notice": "slower"}
    answers = iter([None, None, answer])
    monkeypatch.setattr(process, "_try", lambda: next(answers))
    monkeypatch.setattr(superlink_process.time, "sleep", waited.append)
    process.start()
    assert len(waited) == 2
    assert (process.place.private, process.place.public) == ("127.0.0.1:2", "127.0.0.1:3")
    assert process.notice == "slower"


class Process:
    """A process that has ended."""

    stdin = stdout = None

    def poll(self) -> int:
        """Return its exit code."""
        return 1


def test_a_port_of_another_servers_superlink_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink_process, "silence", lambda *_: "")
    monkeypatch.setattr(superlink_process, "_PORT_S", -1.0)
    place = SuperlinkOptions(insecure=True, clients=tmp_path, state=tmp_path, private="127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"--private 127.0.0.1:9: another server's SuperLink listens there"):
        SuperlinkProcess(place).open()


def test_a_superlink_that_does_not_answer_inside_is_stopped_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SuperlinkOptions(insecure=True, clients=tmp_path, state=tmp_path, private="127.0.0.1:0")
    process, stopped = SuperlinkProcess(place), list[bool]()
    monkeypatch.setattr(process, "start", lambda: None)
    monkeypatch.setattr(process, "stop", lambda: stopped.append(True))
    monkeypatch.setattr(superlink_process, "silence", lambda *_, **__: "wrong certificate")
    with pytest.raises(
        ConfigError, match=r"does not answer on its own side 127.0.0.1:0: wrong certificate; do"
    ):
        process.open()
    assert stopped == [True]


def test_a_superlink_that_died_is_started_again_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = SuperlinkOptions(insecure=True, clients=tmp_path, state=tmp_path, private="127.0.0.1:0")
    process: Any = SuperlinkProcess(place)
    assert not process.ensure(), "nothing was started"
    process._process = Process()
    monkeypatch.setattr(process, "start", lambda: None)
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        assert process.ensure()
    assert caplog.messages == ["the SuperLink ended unexpectedly and is started again"]

    def fails() -> None:
        raise ConfigError("the SuperLink did not start: no")

    process._process = Process()
    monkeypatch.setattr(process, "start", fails)
    with pytest.raises(RunError, match="the SuperLink did not start: no"):
        process.ensure()
