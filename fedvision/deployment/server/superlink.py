"""``python -m fedvision.deployment.server.superlink``: Flower's SuperLink on two sockets.

::

    private   127.0.0.1 only    everything Flower serves: runs, nodes, logs; ``flwr`` and server apps use it
    public    what clients reach   their own calls and /health, for keys in the folder, within limits

Flower's Control API authenticates nobody, so it must not be reachable from outside. Which side a request
belongs to is decided by the socket that accepted it: forwarded headers and forged hosts change nothing.
Whoever works on the server machine itself reaches the private side: give no accounts to strangers.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvision import tables
from fedvision.deployment.server import server_log
from fedvision.deployment.server.limits import Limits
from fedvision.deployment.server.options import SuperlinkOptions, split
from fedvision.deployment.tls import server_context
from fedvision.deployment.transport.proxies import spare_loopback
from fedvision.deployment.transport.self_check import require_transport, server_shortcuts
from fedvision.errors import ConfigError, FedVisionError

if TYPE_CHECKING:
    from fedvision.deployment.server.listener import Ready

log = logging.getLogger("fedvision.deployment")


def serve(
    options: SuperlinkOptions, ready: Ready | None = None, on_notice: Callable[[str], None] = log.warning
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        options: Where and whom.
        ready: Called with the private and the public address, each (host, port), when both are open.
        on_notice: Called with a sentence if the SuperLink works otherwise than it should.

    Raises:
        ConfigError: A file, key, certificate or address cannot be used; nothing is listening then.
    """
    _settle_environment()
    require_transport("internals_superlink")
    import uvicorn

    from fedvision.deployment.server.api_gateway import ApiGateway
    from fedvision.deployment.server.keyring import Keyring
    from fedvision.deployment.server.listener import GuardedServer, PublicListener
    from fedvision.deployment.server.long_polling import LongPolling
    from fedvision.deployment.transport import internals_superlink

    files = options.files()
    context = server_context(files, client_certificates=options.client_certificates) if files else None
    if slower := server_shortcuts():
        on_notice(slower)
    with _bind("--private", options.private) as private, _bind("--public", options.public) as public:
        host, port = private.getsockname()[:2]
        app, state = internals_superlink.superlink(
            host=host,
            port=port,
            database=_database(options.database) or internals_superlink.IN_MEMORY,
            tls=files,
            isolation=options.isolation,
            secret=_secret(options.secret),
            shortcuts=not slower,
        )
        keyring = Keyring(options.clients, state)
        app_with_polling = LongPolling(app if slower else _past_middleware(app))
        server = GuardedServer(
            uvicorn.Config(app_with_polling, **_settings(), **_private_tls(files)), keyring, ready
        )
        gate = ApiGateway(
            app_with_polling,
            lambda: keyring.known,
            options.limits,
            redeliver=functools.partial(internals_superlink.redeliver, state),
            removed=lambda: keyring.removed,
            owner=functools.partial(internals_superlink.owner, state),
        )
        config = uvicorn.Config(gate, **_public_settings(options.limits))
        server.public = PublicListener(public, config, server, context, options.limits)
        server.run(sockets=[private])


def _past_middleware(app: Any) -> Any:
    from fedvision.deployment.transport.internals_fast_path import FastPath

    return FastPath(app)


def _settings() -> dict[str, Any]:
    """Return uvicorn's settings of both sides: its own log and what forwarded headers say are off."""
    return {
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_graceful_shutdown": 5,
    }


def _public_settings(limits: Limits) -> dict[str, Any]:
    return {
        "ws": "none",
        "lifespan": "off",
        "timeout_keep_alive": int(limits.idle_seconds),
        "h11_max_incomplete_event_size": limits.header_bytes,
        **_settings(),
    }


def _private_tls(files: Mapping[str, Path] | None) -> dict[str, Any]:
    return {"ssl_certfile": files["certificate"], "ssl_keyfile": str(files["key"])} if files else {}


def _database(path: Path | None) -> str:
    if path and not path.absolute().parent.is_dir():
        raise ConfigError(f"--database {path}: there is no folder {path.absolute().parent}; make it first")
    return str(path) if path else ""


def _secret(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes().strip() if path else None
    except OSError as error:
        raise ConfigError(f"--secret {path}: it cannot be read: {error.strerror}") from error


def _bind(option: str, address: str) -> socket.socket:
    host, port = split(address)
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as unbound:
            bound = unbound.enter_context(socket.socket(family, kind))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
            unbound.pop_all()
    except OSError as error:
        used = "; a server that still runs, or another program, has the port" * (
            error.errno == errno.EADDRINUSE
        )
        raise ConfigError(f"{option} {address}: it cannot listen there: {error.strerror}{used}") from error
    return bound


def _settle_environment() -> None:
    """Switch off what would call home, install packages or open further ports; find Flower's programs."""
    os.environ.update(
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    )
    for name in ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API"):
        os.environ.pop(name, None)
    spare_loopback(os.environ)
    programs = str(Path(sys.executable).parent)
    if programs not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])


def _parser() -> argparse.ArgumentParser:
    fields = SuperlinkOptions
    parser = argparse.ArgumentParser(
        prog="python -m fedvision.deployment.server.superlink", allow_abbrev=False
    )
    parser.add_argument("--public", default=fields.public, metavar="HOST:PORT", help="what clients reach")
    parser.add_argument("--private", default=fields.private, metavar="HOST:PORT", help="loopback: all else")
    parser.add_argument("--tls", type=Path, metavar="DIR", help="folder with ca.crt, server.crt, server.key")
    parser.add_argument(
        "--clients", type=Path, metavar="DIR", required=True, help="folder with NAME.pub files"
    )
    parser.add_argument("--database", type=Path, metavar="FILE", help="keep runs and nodes (default: memory)")
    parser.add_argument("--insecure", action="store_true", help="plain text, for trials on one machine")
    parser.add_argument("--client-certificates", action="store_true", help="demand them (mutual TLS)")
    parser.add_argument("--isolation", choices=("subprocess", "process"), default=fields.isolation)
    parser.add_argument(
        "--limit", dest="limits", action="append", default=[], metavar="KEY=VALUE", help="such as requests=50"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="where to log (default: standard error)")
    parser.add_argument("--secret", type=Path, metavar="FILE", help="of a process that runs server apps")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve by the command line's arguments; return the exit code: 0, or 2 for wrong usage or settings."""
    given = vars(_parser().parse_args(argv))
    os.umask(0o077)
    try:
        server_log.install(given.pop("log"))
        given["limits"] = tables.build(Limits, _pairs(given["limits"]), "--limit")
        serve(SuperlinkOptions(**given), _announce, _notice)
    except FedVisionError as error:
        print(f"fedvision: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def _pairs(texts: Sequence[str]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for text in texts:
        tables.override(table, text)
    return table


def _notice(sentence: str) -> None:
    print(f"notice {sentence}", flush=True)


def _announce(private: tuple[str, int], public: tuple[str, int]) -> None:
    print(f"private {private[0]}:{private[1]}\npublic {public[0]}:{public[1]}\nready", flush=True)


if __name__ == "__main__":
    sys.exit(main())
