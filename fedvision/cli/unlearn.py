"""The verb that takes clients out of a model whose sums are kept."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.interruption import treat_termination_as_ctrl_c
from fedvision.streams import show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("unlearn", description="take clients out of a closed-form model")
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
    parser.add_argument("--out", type=Path, help="new run folder (default: RUN-without-K)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the arithmetic (default: 1)")
    parser.set_defaults(call=_unlearn, again="the same command begins anew")


def _unlearn(options: argparse.Namespace) -> None:
    treat_termination_as_ctrl_c()
    from fedvision.reporting import render
    from fedvision.unlearning import unlearn

    folder = unlearn(options.run, options.clients, out=options.out, threads=options.threads).folder
    page = folder.path / "report.html"
    show(f"{render.run_table(folder)}\nreport: {page}", recorded=str(page))
