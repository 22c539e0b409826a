"""``fedvision certificates DIR --host NAME... --clients NAME...``: keys, certificates, where they go."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.streams import show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("certificates", description="make the keys and certificates of a federation")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where they are made, or added to")
    parser.add_argument(
        "--host", nargs="+", default=[], metavar="NAME", help="DNS names and IP addresses of the server"
    )
    parser.add_argument("--clients", nargs="+", default=[], metavar="NAME", help="a key for each of them")
    parser.add_argument("--days", type=int, default=365, help="validity of certificates (default: 365)")
    parser.add_argument("--mutual-tls", action="store_true", help="a TLS certificate for each client as well")
    parser.set_defaults(call=_make)


def _make(options: argparse.Namespace) -> None:
    from fedvision.deployment.certificates import make

    folder = options.folder
    make(
        folder,
        hosts=options.host,
        clients=options.clients,
        days=options.days,
        mutual_tls=options.mutual_tls,
    )
    show(_instructions(folder, bool(options.host), options.clients), recorded=str(folder))


def _instructions(folder: Path, server: bool, clients: list[str]) -> str:
    lines = []
    if server:
        lines.append(f"{folder / 'server'}/ -> the server's machine (--tls); server.key is secret")
    for client in clients:
        own, public = folder / "clients" / client, folder / "server/clients" / f"{client}.pub"
        lines.append(f"{own}/ -> the machine of {client}; client.key is secret, delete it here afterwards")
        if not server:
            lines.append(f"{public} -> the server's folder of client keys; it is read within seconds")
    lines.append(f"{folder / 'ca.key'} signs further certificates: keep it offline, with a copy")
    return "\n".join(lines)
