"""What a client makes of the answers of something that is no SuperLink, or of one that refuses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse

from fedvision.deployment.transport.internals_large_objects import BulkLink
from fedvision.deployment.transport.internals_message_objects import (
    LinkDown,
    LinkRefused,
    NotDeliveredYet,
    RunEnded,
)
from fedvision.errors import FedVisionError

PULL = PullObjectRequest(run_id=1, object_id="a" * 64)


@contextmanager
def answering(*answers: bytes) -> Iterator[BulkLink]:
    """Give each connection one answer and close it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    received = b""
                    while not received.endswith(PULL.SerializeToString()):
                        received += connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        key = ec.generate_private_key(ec.SECP384R1())
        link = BulkLink(f"http://127.0.0.1:{server.getsockname()[1]}", key, None)
        try:
            yield link
        finally:
            link.close()
            thread.join()


def page(body: bytes, status: str = "200 OK", size: int | None = None) -> bytes:
    length = len(body) if size is None else size
    return f"HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n".encode() + body


def found(**facts: object) -> bytes:
    body: bytes = PullObjectResponse(**facts).SerializeToString()  # type: ignore[arg-type]
    return page(body)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (found(object_found=False), RunEnded),
        (found(object_found=True), NotDeliveredYet),
        (found(object_found=True, object_available=True), LinkDown),
        (page(b"", "401 Unauthorized"), LinkRefused),
        (page(b"", "503 Busy"), LinkDown),
        (page(b"x" * 10, size=20), LinkDown),
        (page(b"", size=1 << 40), LinkDown),
        (b"HTTP/1.1 200 OK\r\n\r\nwithout a length", LinkDown),
        (b"this is no HTTP\r\n\r\n", LinkDown),
        (page(b"<html>a login page</html>"), LinkDown),
        (b"", LinkDown),
    ],
)
def test_an_answer_that_is_no_object_is_the_right_error(answer: bytes, error: type[FedVisionError]) -> None:
    with answering(answer) as link, pytest.raises(error):
        link.pull(PULL)


def test_an_object_comes_whole_and_the_next_one_over_a_new_connection() -> None:
    content = bytes(range(256)) * 999
    answer = found(object_found=True, object_available=True, object_content=content)
    with answering(answer.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1), answer) as link:
        assert link.pull(PULL) == content
        assert link.pull(PULL) == content


@pytest.mark.parametrize(("proxy", "direct"), [("http://proxy:3128", False), ("", True)])
def test_a_proxy_is_left_to_flowers_client(monkeypatch: pytest.MonkeyPatch, proxy: str, direct: bool) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("https_proxy", proxy)
    base, key = "https://server.example:8443", ec.generate_private_key(ec.SECP384R1())
    assert BulkLink(base, key, None).direct is direct
    monkeypatch.setenv("no_proxy", "server.example")
    assert BulkLink(base, key, None).direct
