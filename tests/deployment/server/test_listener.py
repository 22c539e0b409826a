"""The public socket where the machine is at its end: no file left, a peer that went, a broken socket."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from fedvision.deployment.server import listener
from fedvision.deployment.server.limits import Limits
from fedvision.deployment.server.listener import PublicListener


def test_a_machine_without_free_files_goes_on_accepting_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that hangs up before it is accepted is nothing; what is wrong with the socket itself ends it."""
    failures = [errno.ECONNABORTED, errno.EMFILE, errno.EBADF]
    waited: list[float] = []

    async def fails(sock: socket.socket) -> Any:
        number = failures.pop(0)
        raise OSError(number, errno.errorcode[number])

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    async def run() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", fails)
        monkeypatch.setattr(listener.asyncio, "sleep", wait)
        config: Any = SimpleNamespace(backlog=5)
        server: Any = None
        await PublicListener(bound, config, server, None, Limits()).run()

    with socket.create_server(("127.0.0.1", 0)) as bound:
        with caplog.at_level(logging.WARNING, "fedvision.deployment"), pytest.raises(OSError, match="EBADF"):
            asyncio.run(run())
        assert bound.fileno() == -1, "it is closed"
    assert failures == []
    assert waited == [0.5]
    assert caplog.messages == ["refused all peers: EMFILE; accepting goes on shortly"]
