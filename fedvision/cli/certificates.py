"""``fedvision certificates DIR --host NAME... --clients NAME...``: keys, certificates, where they go."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.errors import ConfigError
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
    parser.add_argument(
        "--kit", action="store_true", help="pack keys, client.toml and a service for each of --clients"
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="the server's, in kits (default: the first name of its certificate, 8443)",
    )
    parser.add_argument(
        "--experiment", dest="trains", type=Path, metavar="EXPERIMENT", help="goes into kits, for the doctor"
    )
    parser.set_defaults(call=_make)


def _make(options: argparse.Namespace) -> None:
    from fedvision.deployment.certificates import make

    folder = options.folder
    _check_kit(options)
    make(
        folder,
        hosts=options.host,
        clients=options.clients,
        days=options.days,
        mutual_tls=options.mutual_tls,
    )
    kits = _pack(options) if options.kit else {}
    show(_instructions(folder, bool(options.host), options.clients, kits), recorded=str(folder))


def _check_kit(options: argparse.Namespace) -> None:
    """Refuse what a kit cannot be made of before any key is written.

    Raises:
        ConfigError: An option is for kits alone, nobody gets one, or the experiment or the address is wrong.
    """
    if not options.kit:
        for name, value in {"--address": options.address, "--experiment": options.trains}.items():
            if value is not None:
                raise ConfigError(f"{name}: it is for kits; add --kit")
        return
    if not options.clients:
        raise ConfigError("--kit: name the clients that get one with --clients")
    from fedvision.config import ExperimentConfig
    from fedvision.deployment.start_kit import server_address

    if options.trains is not None:
        ExperimentConfig.load(options.trains)
    server_address(options.folder, options.host, options.address)


def _pack(options: argparse.Namespace) -> dict[str, Path]:
    """Write a kit for each client and return them by client."""
    from fedvision.deployment.start_kit import Kit, server_address

    address = server_address(options.folder, options.host, options.address)
    kit = Kit(folder=options.folder, address=address, experiment=options.trains)
    return {client: kit.write(client) for client in options.clients}


def _instructions(folder: Path, server: bool, clients: list[str], kits: dict[str, Path]) -> str:
    lines = []
    if server:
        lines.append(f"{folder / 'server'}/ -> the server's machine (--tls); server.key is secret")
    for client in clients:
        own, public = folder / "clients" / client, folder / "server/clients" / f"{client}.pub"
        if client in kits:
            kit = f"{kits[client]} -> the machine of {client}, to be unpacked there"
            lines.append(f"{kit}; it holds its client.key: delete it and {own}/ here afterwards")
        else:
            lines.append(
                f"{own}/ -> the machine of {client}; client.key is secret, delete it here afterwards"
            )
        if not server:
            lines.append(f"{public} -> the server's folder of client keys; it is read within seconds")
    lines.append(f"{folder / 'ca.key'} signs further certificates: keep it offline, with a copy")
    return "\n".join(lines)
