"""Verbs that take clients out of a model whose exact sums are kept, or into it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.interruption import treat_termination_as_ctrl_c
from fedvision.streams import show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: Verbs) -> None:
    """Add the verbs to the command line."""
    for verb, what, place in (
        ("unlearn", "take clients out of a closed-form model", "without"),
        ("include", "take clients into a closed-form model that are not in it", "with"),
    ):
        parser = verbs.add_parser(verb, description=what)
        parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
        who = parser.add_mutually_exclusive_group(required=True)
        who.add_argument(
            "--client",
            dest="clients",
            type=int,
            action="append",
            default=[],
            metavar="K",
            help="number of a client of a simulation; may be given several times",
        )
        who.add_argument(
            "--sums",
            type=Path,
            action="append",
            default=[],
            metavar="FILE",
            help="sums of a client with a machine of its own; may be given several times",
        )
        parser.add_argument("--out", type=Path, help=f"new run folder (default: RUN-{place}-K)")
        parser.add_argument("--threads", type=int, default=1, help="threads of the arithmetic (default: 1)")
        parser.set_defaults(call=_change, verb=verb, again="the same command begins anew")

    request = verbs.add_parser(
        "request-sums", description="write what a client's machine needs to compute its sums again"
    )
    request.add_argument("run", type=Path, metavar="RUN", help="run folder of a server")
    request.add_argument("--client", required=True, metavar="NAME", help="the client's name or number")
    request.add_argument("--out", type=Path, help="new file (default: RUN-request-NAME.safetensors)")
    request.set_defaults(call=_request, again="the same command begins anew")

    sums = verbs.add_parser("sums", description="compute this machine's sums for a server's request")
    sums.add_argument("client", type=Path, metavar="CLIENT", help="TOML file of this machine")
    sums.add_argument("request", type=Path, metavar="REQUEST", help="the server's file")
    sums.add_argument("--out", type=Path, help="new file (default: sums-NAME.safetensors)")
    sums.set_defaults(call=_sums, again="the same command begins anew")


def _change(options: argparse.Namespace) -> None:
    treat_termination_as_ctrl_c()
    from fedvision.reporting import render
    from fedvision.unlearning import include, unlearn

    change = unlearn if options.verb == "unlearn" else include
    folder = change(
        options.run, options.clients, sums=options.sums, out=options.out, threads=options.threads
    ).folder
    page = folder.path / "report.html"
    show(f"{render.run_table(folder)}\nreport: {page}", recorded=str(page))


def _request(options: argparse.Namespace) -> None:
    from fedvision.unlearning import request_sums

    file = request_sums(options.run, options.client, out=options.out)
    show(
        f"request: {file}\non the client's machine: fedvision sums CLIENT.toml {file.name}",
        recorded=str(file),
    )


def _sums(options: argparse.Namespace) -> None:
    from fedvision.deployment.client.config import ClientMachineConfig
    from fedvision.libraries import load_libraries

    config = ClientMachineConfig.load(options.client)
    load_libraries()
    from fedvision.deployment.client.own_sums import write_sums

    out = options.out or Path(f"sums-{config.name}.safetensors")
    found = write_sums(config, options.client.absolute().parent, options.request, out)
    images = int(found.sums["count"].sum())
    show(
        f"sums over {images:,} images: {out}\nthey show this machine's own sums to whoever has the file",
        recorded=str(out),
    )
