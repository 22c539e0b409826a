"""The verb that makes a run's network smaller."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.formatting import plural
from fedvision.streams import show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    prune = verbs.add_parser("prune", description="take channels out of a run's network, to be fine-tuned")
    prune.add_argument("run", type=Path, metavar="RUN", help="run folder")
    prune.add_argument(
        "--keep", type=float, default=0.5, metavar="SHARE", help="of each layer's channels (default: 0.5)"
    )
    prune.add_argument("--rounds", type=int, help="of fine-tuning (default: a third of the run's)")
    prune.add_argument("--out", type=Path, metavar="FOLDER", help="new folder (default: RUN-pruned)")
    prune.set_defaults(call=_prune, again="the same command begins anew")


def _prune(options: argparse.Namespace) -> None:
    from fedvision.pruning import EXPERIMENT, prune

    out = options.out or options.run.with_name(f"{options.run.name}-pruned")
    made = prune(options.run, options.keep, out, rounds=options.rounds)
    before, after = made.parameters
    tuned = made.folder.with_name(f"{made.folder.name}-tuned")
    show(
        f"{made.folder}: {after:,} of {before:,} numbers are left; fine-tune them for "
        f"{plural(made.rounds, 'round')}:\n"
        f"fedvision simulate {made.folder / EXPERIMENT} --out {tuned}",
        recorded=str(made.folder),
    )
