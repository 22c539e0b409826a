"""The page's server: ``fedvision watch``, and ``python -m fedvision.watching.serve OPTIONS`` beside a server.

It is a process of its own that only reads the run folder, with a lower priority than the run: whatever
becomes of it, the run goes on as it would have without it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import secrets
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import uvicorn

from fedvision.deployment.server.limits import Limits
from fedvision.deployment.server.listener import PublicListener
from fedvision.deployment.tls import server_context
from fedvision.deployment.transport.proxies import is_loopback
from fedvision.errors import ConfigError, FedVisionError
from fedvision.streams import complain, show
from fedvision.watching.access import Guard, read_token
from fedvision.watching.app import application
from fedvision.watching.followed_run import FollowedRun, check_folder
from fedvision.watching.live import LivePage

PORT = 8050
"""The port where none is named."""
_NICE = 10
_PORT_S = 5.0
"""How long the port of the page of a server that was just killed may still be taken."""
_LIMITS = Limits(connections=128, peer_connections=64, idle_seconds=30.0)


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Which run is watched, and where the page is."""

    run: Path
    """The run folder; it need not be there yet."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = PORT
    """Its port; 0 takes a free one."""
    token_file: Path | None = None
    """File with what a viewer must know; on other than loopback addresses one is made where there is none."""
    tls: Path | None = None
    """Folder with ``ca.crt``, ``server.crt`` and ``server.key``."""
    insecure: bool = False
    """Speak plain text on other than loopback addresses."""

    def to_text(self) -> str:
        """Return this as JSON, for a process of its own."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_text(cls, text: str) -> WatchOptions:
        """Read what ``to_text`` wrote."""
        table = json.loads(text)
        paths = {name: Path(table[name]) for name in ("run", "token_file", "tls") if table[name]}
        return cls(**{**table, **paths})

    @property
    def loopback(self) -> bool:
        """Whether the page is for this machine alone."""
        return is_loopback(self.host)

    def token(self) -> str | None:
        """Return what a viewer must know: that of the file, else a new one where others reach the page.

        Raises:
            ConfigError: The file cannot be used.
        """
        if self.token_file is not None:
            return read_token(self.token_file)
        return None if self.loopback else secrets.token_urlsafe(24)

    def context(self) -> ssl.SSLContext | None:
        """Return the settings of TLS; None for plain text.

        Raises:
            ConfigError: The certificate cannot be used, or there is none where there must be one.
        """
        if self.tls is not None and self.insecure:
            raise ConfigError(
                "--insecure speaks plain text, but certificates are named; leave one of them out"
            )
        if self.tls is not None:
            names = {"ca": "ca.crt", "certificate": "server.crt", "key": "server.key"}
            files = {name: self.tls / file for name, file in names.items()}
            for path in files.values():
                if not os.access(path, os.R_OK):
                    raise ConfigError(f"--tls: {path} cannot be read; `fedvision certificates` makes it")
            return server_context(files, client_certificates=False)
        if not self.loopback and not self.insecure:
            raise ConfigError(
                f"--host {self.host}: others can reach it, so the page needs TLS: name the folder of "
                "server.crt and server.key with --tls; --insecure does without, in a network that you trust"
            )
        return None


def serve(options: WatchOptions, *, ready: Callable[[str], None], patience: float = 0.0) -> None:
    """Serve the page until SIGINT or SIGTERM, which are raised again when it is closed.

    Args:
        options: What and where.
        ready: Is called with the page's address once it can be opened.
        patience: Seconds in which a port that is taken is tried again.

    Raises:
        ConfigError: The folder, the token, the certificate or the port cannot be used.
    """
    check_folder(options.run)
    token, context = options.token(), options.context()
    bound = _bind(options, patience)
    with suppress(OSError):
        os.nice(_NICE)
    for name in ("uvicorn.error", "fedvision.deployment"):  # a browser that leaves is nothing to report
        logging.getLogger(name).setLevel(logging.CRITICAL)
    place, secure = bound.getsockname()[1], context is not None
    guard = Guard(token=token, loopback=options.loopback, port=place, secure=secure)
    address = _address(options, place, secure)
    if token is not None and options.token_file is None:
        address += f"?token={token}"
    asyncio.run(_serve(bound, options, guard, context, lambda: ready(address)))


async def _serve(
    bound: socket.socket,
    options: WatchOptions,
    guard: Guard,
    context: ssl.SSLContext | None,
    ready: Callable[[], None],
) -> None:
    live = LivePage(FollowedRun(options.run))
    config = uvicorn.Config(
        application(live, guard),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(_LIMITS.idle_seconds),
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=_LIMITS.header_bytes,
    )
    config.load()
    server = _Server(config, live)
    server.listener = PublicListener(bound, config, server, context, _LIMITS)
    server.ready = ready
    await server.serve(sockets=[])


class _Server(uvicorn.Server):
    """uvicorn's server behind the guarded listener, which follows the run as long as it is up."""

    listener: PublicListener
    ready: Callable[[], None]

    def __init__(self, config: uvicorn.Config, live: LivePage) -> None:
        super().__init__(config)
        self._live = live
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the page."""
        await super().startup(sockets=sockets)
        self._tasks = [asyncio.create_task(job) for job in (self.listener.run(), self._live.follow())]
        await asyncio.sleep(0)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the viewers go, and end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._live.close()
        await super().shutdown(sockets=sockets)


def _bind(options: WatchOptions, patience: float) -> socket.socket:
    deadline = time.monotonic() + patience
    while True:
        bound = None
        try:
            family, kind, _, _, place = socket.getaddrinfo(
                options.host, options.port, type=socket.SOCK_STREAM
            )[0]
            bound = socket.socket(family, kind)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
            bound.listen()  # only here it is found out that somebody else listens
            return bound
        except UnicodeError as error:  # a name with an empty or a too long part
            raise ConfigError(f"--host {options.host}: no machine can have this name") from error
        except OSError as error:
            if bound:
                bound.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            used = "; another program has the port, name another one"
            why = f"{error.strerror}{used if error.errno == errno.EADDRINUSE else ''}"
            raise ConfigError(
                f"--port {options.port}: the page cannot be on {options.host}: {why}"
            ) from error


def _address(options: WatchOptions, port: int, secure: bool) -> str:
    host = socket.gethostname() if options.host in ("0.0.0.0", "::") else options.host
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"


def main(text: str) -> int:
    """Serve beside another process, and end with it; return an exit code.

    The first line on standard output is ``ready ADDRESS``, or ``refused`` and a sentence.
    """

    def end_with_parent() -> None:
        sys.stdin.buffer.read()  # the other end of the pipe closes with the process that holds it
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        serve(WatchOptions.from_text(text), ready=lambda address: show(f"ready {address}"), patience=_PORT_S)
    except FedVisionError as error:
        show(f"refused {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # its parent's log is no place for a traceback of a page
        complain(f"the page on the run ended: {type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
