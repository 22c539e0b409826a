"""``fedvision watch``: one live page on a run, read from its folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.errors import ConfigError
from fedvision.interruption import treat_termination_as_ctrl_c
from fedvision.streams import show

if TYPE_CHECKING:
    from fedvision.watching.serve import WatchOptions

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_PORT, _HOST = 8050, "127.0.0.1"


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    watch = verbs.add_parser("watch", description="show a run on a live page, with metrics for Prometheus")
    watch.add_argument("run", type=Path, metavar="RUN", help="run folder; it may not be there yet")
    watch.add_argument("--port", type=int, default=_PORT, help=f"of the page (default: {_PORT})")
    watch.add_argument("--host", default=_HOST, help=f"address to listen on (default: {_HOST})")
    watch.add_argument("--token-file", type=Path, metavar="FILE", help="with what a viewer must know")
    watch.add_argument("--tls", type=Path, metavar="DIR", help="folder of ca.crt, server.crt and server.key")
    watch.add_argument("--insecure", action="store_true", help="plain text on an address that others reach")
    watch.set_defaults(call=_watch, again="the run goes on; the same command watches it again")


def add_to_server(server: argparse.ArgumentParser) -> None:
    """Add the options with which a server shows a page on its run."""
    server.add_argument("--watch", metavar="PORT", help="show the run on a live page; HOST:PORT for others")
    server.add_argument("--token-file", type=Path, metavar="FILE", help="with what the page's viewers know")


def check_beside_server(options: argparse.Namespace) -> None:
    """Check what can be told of a server's options for the page before anything is loaded.

    Raises:
        ConfigError: They name no port, or a token and no page.
    """
    if options.watch is not None:
        _port("--watch", options.watch.rpartition(":")[2])
    elif options.token_file is not None:
        raise ConfigError("--token-file: it is for the page on the run; name its port with --watch")


def beside_server(options: argparse.Namespace, out: Path) -> WatchOptions | None:
    """Return what a server's options say of the page; None where none is wanted.

    Args:
        options: With ``watch``, ``token_file``, ``tls`` and ``insecure``.
        out: The run folder.

    Raises:
        ConfigError: They name no port, or a token and no page.
    """
    check_beside_server(options)
    if options.watch is None:
        return None
    host, _, port = options.watch.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or _HOST
    return _options(
        run=out.resolve(),
        host=host,
        port=_port("--watch", port),
        token_file=options.token_file and options.token_file.resolve(),
        tls=options.tls and options.tls.resolve(),
        insecure=options.insecure,
    )


def _watch(options: argparse.Namespace) -> None:
    treat_termination_as_ctrl_c()
    from fedvision.watching.serve import serve

    place = _options(
        run=options.run,
        host=options.host,
        port=_port("--port", str(options.port)),
        token_file=options.token_file,
        tls=options.tls,
        insecure=options.insecure,
    )
    serve(place, ready=lambda address: show(f"{options.run}: {address}"))


def _options(
    *, run: Path, host: str, port: int, token_file: Path | None, tls: Path | None, insecure: bool
) -> WatchOptions:
    """Return what is served; a page that this machine alone can reach is plain text."""
    from fedvision.deployment.transport.proxies import is_loopback
    from fedvision.watching.serve import WatchOptions

    alone = is_loopback(host)
    return WatchOptions(
        run=run,
        host=host,
        port=port,
        token_file=token_file,
        tls=None if alone else tls,
        insecure=insecure and not alone,
    )


def _port(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ConfigError(f"{option}: {text!r} is no port: name a number from 0 to 65535")
    return int(text)
