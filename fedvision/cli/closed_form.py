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
        parser.add_argument("run", type=Path, metavar="RUN", help="run folder of a simulation")
        parser.add_argument(
            "--client",
            dest="clients",
            type=int,
            action="append",
            required=True,
            metavar="K",
            help="number of a client; may be given several times",
        )
        parser.add_argument("--out", type=Path, help=f"new run folder (default: RUN-{place}-K)")
        parser.add_argument("--threads", type=int, default=1, help="threads of the arithmetic (default: 1)")
        parser.set_defaults(call=_change, verb=verb, again="the same command begins anew")


def _change(options: argparse.Namespace) -> None:
    treat_termination_as_ctrl_c()
    from fedvision.reporting import render
    from fedvision.unlearning import include, unlearn

    change = unlearn if options.verb == "unlearn" else include
    folder = change(options.run, options.clients, out=options.out, threads=options.threads).folder
    page = folder.path / "report.html"
    show(f"{render.run_table(folder)}\nreport: {page}", recorded=str(page))
