"""Verbs for smaller networks: prune a run's, measure those of other runs beside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.cli.export import labelled, on
from fedvision.cli.model import check_writable, load_model, write_text
from fedvision.files import json_page
from fedvision.formatting import plural, typed
from fedvision.streams import show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: Verbs) -> None:
    """Add the verbs to the command line."""
    prune = verbs.add_parser("prune", description="take channels out of a run's network, to be fine-tuned")
    prune.add_argument("run", type=Path, metavar="RUN", help="run folder")
    prune.add_argument(
        "--keep", type=float, default=0.5, metavar="SHARE", help="of each layer's channels (default: 0.5)"
    )
    prune.add_argument("--rounds", type=int, help="of fine-tuning (default: a third of the run's)")
    prune.add_argument("--out", type=Path, metavar="FOLDER", help="new folder (default: RUN-pruned)")
    prune.set_defaults(call=_prune, again="the same command begins anew")

    versions = verbs.add_parser("versions", description="measure other runs' models beside a run's")
    versions.add_argument("run", type=Path, metavar="RUN", help="run folder, whose report shows the table")
    versions.add_argument(
        "others",
        type=Path,
        nargs="+",
        metavar="OTHER",
        help="run folders of distilled, pruned or other networks",
    )
    versions.add_argument("--data", required=True, metavar="SOURCE", help="labelled images, as for evaluate")
    versions.add_argument(
        "--part", choices=("test", "train"), help="images of SOURCE (default: test ones where it has any)"
    )
    versions.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    versions.add_argument("--threads", type=int, default=1, help="threads of the arithmetic (default: 1)")
    versions.set_defaults(call=_versions, device="cpu", again="the same command begins anew")


def _prune(options: argparse.Namespace) -> None:
    from fedvision.pruning import EXPERIMENT, prune

    out = options.out or options.run.with_name(f"{options.run.name}-pruned")
    made = prune(options.run, options.keep, out, rounds=options.rounds)
    before, after = made.parameters
    tuned = made.folder.with_name(f"{made.folder.name}-tuned")
    show(
        f"{made.folder}: {after:,} of {before:,} numbers are left; fine-tune them for "
        f"{plural(made.rounds, 'round')}:\n"
        f"fedvision simulate {typed(made.folder / EXPERIMENT)} --out {typed(tuned)}",
        recorded=str(made.folder),
    )


def _versions(options: argparse.Namespace) -> None:
    check_writable(options.json, "--json")
    from fedvision.reporting.render import versions_table
    from fedvision.reporting.text_table import plain_text

    model = load_model(options)
    others = [load_model(argparse.Namespace(**{**vars(options), "run": path})) for path in options.others]
    from fedvision.export.other_runs import compare

    data = labelled(model, options)
    found = compare(model, others, data)
    if options.json:
        write_text(options.json, json_page({"versions": [vars(one) for one in found]}))
    last = f"measured on {on(found[0])}; `fedvision report {typed(options.run)}` shows them in the report"
    show(plain_text(versions_table(found), "", last), recorded=str(options.json or ""))
