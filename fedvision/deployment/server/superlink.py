"""``python -m fedvision.deployment.server.superlink OPTIONS``: Flower's SuperLink on two sockets.

::

    private   127.0.0.1 only    everything Flower serves: runs, nodes, logs; ``flwr`` and server apps use it
    public    what clients reach   their own calls and /health, for keys in the folder, within limits

Flower's Control API authenticates nobody, so it must not be reachable from outside. Which side a request
belongs to is decided by the socket that accepted it: forwarded headers and forged hosts change nothing.
Whoever works on the server machine itself reaches the private side: give no accounts to strangers.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvision.deployment.server import server_log
from fedvision.deployment.server.options import SuperlinkOptions, split
from fedvision.deployment.tls import server_context
from fedvision.deployment.transport.proxies import spare_loopback
from fedvision.deployment.transport.self_check import require_transport, server_shortcuts
from fedvision.errors import ConfigError, FedVisionError

_SETTINGS: Mapping[str, Any] = {
    "log_config": None,
    "access_log": False,
    "proxy_headers": False,
    "server_header": False,
    "timeout_graceful_shutdown": 5,
}
"""uvicorn's of both sides: its own log and what forwarded headers say are off."""


def serve(options: SuperlinkOptions) -> None:
    """Serve until SIGINT or SIGTERM, and print one line when both sides are open.

    The line is ``ready`` and a JSON table: the addresses ``private`` and ``public``, and ``notice``, a
    sentence if the SuperLink works otherwise than it should.

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
    slower = server_shortcuts()
    with _bind("--private", options.private) as private, _bind("--public", options.public) as public:
        (host, port), place = private.getsockname()[:2], public.getsockname()

        def ready() -> None:
            answer = {"private": f"{host}:{port}", "public": f"{place[0]}:{place[1]}", "notice": slower}
            print("ready", json.dumps(answer), flush=True)

        app, state = internals_superlink.superlink(
            host=host,
            port=port,
            database=options.database,
            tls=files,
            secret=options.secret(),
            shortcuts=not slower,
        )
        keyring = Keyring(options.clients, state)
        app = LongPolling(app if slower else _past_middleware(app))
        server = GuardedServer(uvicorn.Config(app, **_SETTINGS, **_own_side(files)), keyring, ready)
        gate = ApiGateway(
            app,
            lambda: keyring.known,
            options.limits,
            redeliver=functools.partial(internals_superlink.redeliver, state),
            removed=lambda: keyring.removed,
            owner=functools.partial(internals_superlink.owner, state),
            announced=functools.partial(internals_superlink.announced, state),
        )
        config = uvicorn.Config(
            gate,
            ws="none",
            lifespan="off",
            timeout_keep_alive=int(options.limits.idle_seconds),
            h11_max_incomplete_event_size=options.limits.header_bytes,
            **_SETTINGS,
        )
        server.public = PublicListener(public, config, server, context, options.limits)
        server.run(sockets=[private])


def _own_side(files: Mapping[str, Path] | None) -> dict[str, Any]:
    """Return how the run's own processes are answered."""
    return {"ssl_certfile": files["certificate"], "ssl_keyfile": str(files["key"])} if files else {}


def _past_middleware(app: Any) -> Any:
    from fedvision.deployment.transport.internals_fast_path import FastPath

    return FastPath(app)


def _bind(option: str, address: str) -> socket.socket:
    host, port = split(address)
    bound = None
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
    except UnicodeError as error:  # a name with an empty or a too long part
        raise ConfigError(f"{option} {address}: no machine can have this name") from error
    except OSError as error:
        if bound:
            bound.close()
        used = "; a server that still runs, or another program, has the port"
        why = f"{error.strerror}{used if error.errno == errno.EADDRINUSE else ''}"
        raise ConfigError(f"{option} {address}: it cannot listen there: {why}") from error
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


def main(text: str) -> int:
    """Serve as options in JSON say and return an exit code: 0 ended, 2 wrong configuration."""
    os.umask(0o077)
    try:
        options = SuperlinkOptions.from_text(text)
        options.secret()
        server_log.install(options.log)
        serve(options)
    except FedVisionError as error:
        print(f"fedvision: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def _end_with_parent() -> None:
    """End when standard input does, which the process that started this one holds open."""
    while os.read(0, 4096):  # not sys.stdin: its lock would be held while the interpreter ends
        pass
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main(sys.argv[1]))
