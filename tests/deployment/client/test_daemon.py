"""What a client's owner and the server's administrator read when the two do not come together."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedvision.deployment import certificates
from fedvision.deployment.client import connectivity, daemon
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.training_process import TrainingProcess
from fedvision.deployment.server.access_log import FILE as ACCESS
from fedvision.deployment.server.keyring import fingerprint, read_public_key
from fedvision.deployment.transport.internals_message_objects import LinkDown, LinkRefused, RunEnded
from fedvision.deployment.transport.message_format import MessageHeader
from fedvision.errors import ConfigError, RunError
from tests.deployment.server.certificate_dates import make_at
from tests.deployment.server.processes import Running, eventually, superlink

TRUSTING = """
import datetime
import fedvision.deployment.certificates as certificates
ever = datetime.datetime.max.replace(tzinfo=datetime.UTC)
certificates.validity = lambda path: (datetime.datetime.min.replace(tzinfo=datetime.UTC), ever)
"""


@pytest.fixture(scope="module")
def server(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with superlink(pki, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained here, and the process that would takes seconds to start."""
    monkeypatch.setattr(TrainingProcess, "start", lambda self: None)
    monkeypatch.setattr(TrainingProcess, "look", lambda self: None)


def table(own: Path, folder: Path, address: str, **superlink: object) -> dict[str, object]:
    return {
        "name": "north",
        "state": str(folder / "state"),
        "superlink": {
            "address": address,
            "key": str(own / "client.key"),
            "root_certificate": str(own / "ca.crt"),
            "retry_for": 0.1,
            **superlink,
        },
        "data": {"use": "digits"},
    }


def refused(own: Path, folder: Path, address: str, **superlink: object) -> str:
    """Return the sentence with which a client gives up."""
    config = ClientMachineConfig.from_dict(table(own, folder, address, **superlink))
    with pytest.raises(RunError, match="; given up after") as error:
        daemon.ClientDaemon(config, folder).serve()
    text = str(error.value)
    assert text.startswith(f"{address}: ")
    assert "\n" not in text
    return text


def test_an_unknown_key_is_a_sentence_on_both_sides(
    pki: Path, strangers: Path, server: Running, tmp_path: Path
) -> None:
    roots = str(pki / "ca.crt")
    address = f"localhost:{server.public}"
    text = refused(strangers / "clients/stranger", tmp_path, address, root_certificate=roots)
    assert "The server does not know this client's key; send the .pub file" in text
    assert "The server does not know this client's key" in server.log.read_text()
    key = fingerprint(read_public_key(strangers / "server/clients/stranger.pub"))
    found = [json.loads(line) for line in (server.place.state / ACCESS).read_text().splitlines()]
    assert ("refused", "127.0.0.1", key) in [(one["what"], one["address"], one["key"]) for one in found]


def test_a_stranger_authority_is_a_sentence_on_both_sides(
    pki: Path, strangers: Path, server: Running, tmp_path: Path
) -> None:
    roots = str(strangers / "ca.crt")
    address = f"localhost:{server.public}"
    text = refused(pki / "clients/north", tmp_path, address, root_certificate=roots)
    assert "its certificate is not signed by" in text
    assert eventually(lambda: "the TLS handshake failed (TLSV1_ALERT_UNKNOWN_CA)" in server.log.read_text())


def test_a_wrong_name_and_a_wrong_port_are_sentences(pki: Path, server: Running, tmp_path: Path) -> None:
    own = pki / "clients/north"
    text = refused(own, tmp_path, f"127.0.0.2:{server.public}")
    assert "its certificate is not for 127.0.0.2; write a name that it holds" in text
    assert "there is no machine of this name" in refused(own, tmp_path, "no-such-name.invalid:8443")
    assert "nothing listens there" in refused(own, tmp_path, "127.0.0.1:1")


@pytest.mark.parametrize(("seconds", "where"), [(3600, "ahead of"), (-3600, "behind")])
def test_a_clock_that_is_wrong_is_named(
    pki: Path, server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, where: str
) -> None:
    import flwr.supernode.node_auth_http_interceptor as interceptor

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.now(UTC) + timedelta(seconds=seconds)

    now = connectivity.time.time
    monkeypatch.setattr(connectivity.time, "time", lambda: now() + seconds)
    monkeypatch.setattr(interceptor, "now", Wrong.now)
    text = refused(pki / "clients/north", tmp_path, f"localhost:{server.public}")
    assert "this machine's clock is 3" in text
    assert f"s {where} the server's, which refuses its calls; set it (NTP)" in text


@pytest.mark.long
def test_an_expired_server_certificate_is_a_sentence_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server looks when it starts; here it goes on as one does whose certificate ended while it ran.
    make_at(tmp_path / "pki", monkeypatch, datetime.now(UTC) - timedelta(days=10))
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(TRUSTING)
    (tmp_path / "server").mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")
        with superlink(tmp_path / "pki", tmp_path / "server") as server:
            patch.undo()
            own = tmp_path / "pki/clients/north"
            file = tmp_path / "north.toml"
            file.write_text(
                f'name = "north"\n[superlink]\naddress = "localhost:{server.public}"\nretry_for = 0.1\n'
                f'key = "{own}/client.key"\nroot_certificate = "{own}/ca.crt"\n[data]\nuse = "digits"\n'
            )
            done = subprocess.run(
                [sys.executable, "-m", "fedvision.cli.main", "client", str(file)],
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert "its certificate has expired; the server needs a new one" in done.stderr
            assert "Traceback" not in done.stderr
            assert done.returncode == 1
            assert eventually(lambda: "SSLV3_ALERT_CERTIFICATE_EXPIRED" in server.log.read_text())


@pytest.mark.slow
def test_unusable_client_certificates(
    pki: Path, strangers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client certificates that are missing, expired or of another authority are sentences on both sides."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.now(UTC) - timedelta(days=10)

    authority = certificates._read_authority(pki, 1)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "datetime", Then)
        old = certificates._client_files(authority, "old", 1, True)
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_bytes(old[Path("clients/old") / name][0])
    (tmp_path / "server").mkdir()
    with superlink(pki, tmp_path / "server", client_certificates=True) as server:
        cases = [
            (None, "does it ask for a client certificate?", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
            (
                tmp_path,
                "client_certificate, which has expired",
                "client certificate: certificate has expired",
            ),
            (
                strangers / "clients/stranger",
                "is that signed by the server's authority?",
                "client certificate: ",
            ),
        ]
        for folder, reason, logged in cases:
            shown = {} if folder is None else {"client_certificate": f"{folder}/tls.crt"}
            shown |= {} if folder is None else {"client_key": f"{folder}/tls.key"}
            text = refused(pki / "clients/north", tmp_path, f"localhost:{server.public}", **shown)
            assert reason in text, text
            assert eventually(lambda logged=logged: logged in server.log.read_text()), server.log.read_text()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"key": "nowhere"}, "superlink.key: nowhere cannot be read: No such file"),
        ({"root_certificate": "nowhere"}, "superlink.root_certificate: nowhere cannot be read"),
        ({"key": "BROKEN"}, "is no OpenSSH private key without a passphrase"),
        ({"key": "CA"}, "is no OpenSSH private key without a passphrase"),
        ({"root_certificate": "BROKEN"}, "superlink.root_certificate: .* cannot be used"),
        ({"client_certificate": "BROKEN", "client_key": "BROKEN"}, "superlink.client_certificate: .*"),
    ],
)
def test_files_of_another_kind_are_named_before_anything_is_sent(
    pki: Path, tmp_path: Path, wrong: dict[str, str], sentence: str
) -> None:
    (tmp_path / "broken").write_text("nothing")
    named = {"BROKEN": str(tmp_path / "broken"), "CA": str(pki / "ca.crt")}
    files = {key: named.get(name, name) for key, name in wrong.items()}
    config = ClientMachineConfig.from_dict(table(pki / "clients/north", tmp_path, "localhost:1", **files))
    with pytest.raises(ConfigError, match=sentence):
        daemon.ClientDaemon(config, tmp_path).serve()


def test_a_heartbeat_that_finds_the_server_ends_the_pause(
    pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Link:
        beats = 0

        def beat(self, empty_for: float | None) -> bool:
            self.beats += 1
            if self.beats < 3:
                raise LinkDown("away")
            return True

    monkeypatch.setattr(daemon, "_BEAT_S", 0.02)
    monkeypatch.setattr(daemon, "_BEAT_AGAIN_S", 0.02)
    config = ClientMachineConfig.from_dict(table(pki / "clients/north", tmp_path, "localhost:1"))
    client = daemon.ClientDaemon(config, tmp_path)
    link: Any = Link()
    client._link = link
    beats = threading.Thread(target=client._beat, daemon=True)
    beats.start()
    began = time.monotonic()
    client._rest(60.0)
    assert time.monotonic() - began < 30
    assert link.beats >= 3, "one that fails ends no pause"
    client._over.set()
    beats.join()


def test_no_remedies_after_a_finished_run(pki: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    config = ClientMachineConfig.from_dict(table(pki / "clients/north", tmp_path, f"127.0.0.1:{port}"))
    client = daemon.ClientDaemon(config, tmp_path)
    assert "is the server running, and the port right?" in client._why(LinkDown("away"))
    client._answered = "a message"
    assert client._why(LinkDown("away")) == (
        f"127.0.0.1:{port}: the server has gone: its run is over, or it was stopped; this client waits for "
        "the next one, Ctrl-C ends it"
    )
    client._in_hand = b"a task"
    assert "is the server running, and the port right?" in client._why(LinkDown("away"))


def test_a_task_of_a_run_that_a_new_server_does_not_know_is_dropped(pki: Path, tmp_path: Path) -> None:
    """A server that was moved without its SuperLink's files answers each call about the old run with 500."""
    head = SimpleNamespace(
        metadata=SimpleNamespace(run_id=7, message_type="train", message_id="of the old one")
    )

    class Link:
        calls = 0

        def incoming(self, message: bytes) -> Any:
            def fails() -> None:
                raise LinkDown("HTTP status 500")

            return SimpleNamespace(head=head, open=fails)

        def run_config(self, run: int) -> Any:
            self.calls += 1
            raise RunEnded("no such run")

        def receive(self) -> bytes | None:
            client._lost.set()
            return None

    config = ClientMachineConfig.from_dict(table(pki / "clients/north", tmp_path, "localhost:1"))
    client = daemon.ClientDaemon(config, tmp_path)
    link: Any = Link()
    client._link = link
    known: Any = SimpleNamespace(run="the old one")
    client._runs[7], client._opened = known, (client._trainer.generation, "the old one")
    client._in_hand = b"a task"
    client._state.keep_message(b"a task")
    with pytest.raises(LinkRefused):
        client._work()
    assert client._message() is None
    assert link.calls == 1


@pytest.mark.parametrize(
    "kept", [b"\0" * 40, b"\xff" * 40, b"\x08\x01"], ids=["zeros", "noise", "no message"]
)
def test_a_kept_message_that_a_power_cut_damaged_is_dropped(pki: Path, tmp_path: Path, kept: bytes) -> None:
    config = ClientMachineConfig.from_dict(table(pki / "clients/north", tmp_path, "localhost:1"))
    client = daemon.ClientDaemon(config, tmp_path)
    client._state.keep_message(kept)

    def receive() -> None:
        client._lost.set()

    client._link.receive = receive  # type: ignore[method-assign]
    with pytest.raises(LinkRefused):
        client._work()
    assert client._message() is None


def test_what_befell_an_idle_client_is_told_in_one_reply(pki: Path, tmp_path: Path) -> None:
    """A link that came and went for days must not be told eight times a round for weeks."""
    config = ClientMachineConfig.from_dict(table(pki / "clients/north", tmp_path, "localhost:1"))
    client = daemon.ClientDaemon(config, tmp_path)
    for number in range(100):
        client._note(f"its connection was away for {number} s")
    reply = client._state.reply("train")
    told = client._notes_of(reply, "a task")
    assert told == tuple(f"its connection was away for {number} s" for number in range(92, 100))
    client._note("its images changed since it reported them")
    assert client._notes_of(reply, "a task") == told, "the same reply is the same"
    assert client._notes_of(reply, "the next task") == ("its images changed since it reported them",)


def test_the_log_says_what_memory_a_task_took() -> None:
    text = daemon.memory_text({"process": 712_000_000, "device": 5_000_000_000})
    assert text == ", so far at most 712 MB of main memory, so far at most 5 GB of the GPU's memory"
    assert daemon.memory_text({}) == ""


def test_a_task_is_the_same_whoever_takes_part_by_now() -> None:
    """A server that is started again may count others than before; that is no reason to train again."""

    def digest(members: int, client: int = 0) -> str:
        layout = MessageHeader(client=client, members=members)
        return daemon._digest("ab12", "train", layout, ["x"])

    assert digest(2) == digest(3)
    assert digest(2) != digest(2, client=1)
