"""The public socket: accepts, shakes hands and reads headers under a deadline, and counts connections.

uvicorn itself waits for ever for a request's headers, and asyncio's servers count no connection whose TLS
handshake has not ended: a few hundred silent connections would take all the places.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedvision.deployment.server.limits import ConnectionLimiter, Limits, peer_name
from fedvision.deployment.server.server_log import PeerLogger, refuse, warn

if TYPE_CHECKING:
    from fedvision.deployment.server.keyring import Keyring

log = logging.getLogger("fedvision.deployment")
_RESCAN_S = 3.0
_OPEN_FILES = 8192
_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class PromptProtocol(H11Protocol):
    """HTTP/1.1 that hangs up when a request's headers take too long.

    Args:
        peer: Whose connection it is, for the log.
        header_seconds: From the connection, or a request's first byte, to the end of its headers.
        left: Called when the connection is gone.
        arguments: As for uvicorn's protocol.
    """

    def __init__(
        self, *, peer: str, header_seconds: float, left: Callable[[], None], **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.logger = PeerLogger(self.logger, peer)  # type: ignore[assignment]
        self._peer, self._header_seconds, self._left = peer, header_seconds, left
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; the deadline ends with the headers."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request: one may be half here already."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the seat back."""
        self._stop()
        super().connection_lost(exc)
        self._left()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._header_seconds, self._hang_up)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self) -> None:
        refuse(self._peer, f"no whole request within {self._header_seconds:g} seconds")
        self.transport.abort()


class PublicListener:
    """Accept connections on the public socket for as long as the server runs.

    Args:
        sock: Bound, not yet listening.
        config: uvicorn's settings with the public application, loaded.
        server: The server of the private side: it counts the connections and ends them.
        context: TLS, or None for plain text.
        limits: Deadlines and numbers of connections.
    """

    def __init__(
        self,
        sock: socket.socket,
        config: uvicorn.Config,
        server: uvicorn.Server,
        context: ssl.SSLContext | None,
        limits: Limits,
    ) -> None:
        self._socket, self._config, self._server = sock, config, server
        self._context, self._limits = context, limits
        self._seats = ConnectionLimiter(limits)
        self._handshakes: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        self._socket.listen(self._config.backlog)
        try:
            while True:
                try:
                    connection, address = await loop.sock_accept(self._socket)
                except OSError as error:
                    if error.errno in _FULL:
                        warn("refused all peers", f"{error.strerror}; accepting goes on shortly")
                        await asyncio.sleep(0.5)
                    elif error.errno != errno.ECONNABORTED:
                        raise
                    continue
                self._receive(connection, address[0])
        finally:
            self._socket.close()
            for handshake in self._handshakes:
                handshake.cancel()

    def _receive(self, connection: socket.socket, address: str) -> None:
        peer = peer_name(address)
        if reason := self._seats.take(peer):
            refuse(peer, reason)
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._connect(connection, peer))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _connect(self, connection: socket.socket, peer: str) -> None:
        """Shake hands; from then on the protocol holds the seat."""
        held = [peer]

        def leave() -> None:
            if held:
                self._seats.leave(held.pop())

        seconds = self._limits.header_seconds

        def protocol() -> PromptProtocol:
            return PromptProtocol(
                peer=peer,
                header_seconds=seconds,
                left=leave,
                config=self._config,
                server_state=self._server.server_state,
                app_state=self._server.lifespan.state,
            )

        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=seconds if self._context else None,
                ssl_shutdown_timeout=seconds if self._context else None,
            )
        except (OSError, ssl.SSLError) as error:
            refuse(peer, f"the TLS handshake failed ({_short(error)})")
            with contextlib.suppress(OSError):
                connection.close()
            leave()
        except asyncio.CancelledError:
            connection.close()
            raise


def _short(error: OSError) -> str:
    """Return why a handshake failed, without numbers that differ each time."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its client certificate: {error.verify_message}"
    return getattr(error, "reason", None) or error.strerror or type(error).__name__


class GuardedServer(uvicorn.Server):
    """uvicorn's server of the private side, which also runs the public listener and reads keys again.

    Args:
        config: The private side's settings.
        keyring: Read again every few seconds.
        ready: Called when both sides are open.
    """

    def __init__(self, config: uvicorn.Config, keyring: Keyring, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.public: PublicListener
        self._keyring, self._ready = keyring, ready
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open both sides."""
        _allow_open_files()
        await super().startup(sockets=sockets)
        if self.should_exit or not sockets:
            return
        self._tasks = [asyncio.create_task(self._guard(job())) for job in (self.public.run, self._rescan)]
        await asyncio.sleep(0)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the public side first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().shutdown(sockets=sockets)

    async def _guard(self, job: Coroutine[Any, Any, None]) -> None:
        """Run a job; a server without its public side or its keys must end with a reason."""
        try:
            await job
        except Exception:
            log.exception("the public side broke down; the server ends")
            self.should_exit = True

    async def _rescan(self) -> None:
        while True:
            await asyncio.sleep(_RESCAN_S)
            try:
                problems = await asyncio.to_thread(self._keyring.sync)
            except Exception as error:  # A busy database is no reason to end: the next time will do.
                problems = [f"the client keys were not read again: {error}"]
            for problem in problems:
                log.warning("%s", problem)


def _allow_open_files() -> None:
    """Raise this process's limit of open files as far as needed and allowed."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
