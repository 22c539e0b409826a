"""The verb that corrects a run's head for class frequencies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.streams import complain, show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    adjust = verbs.add_parser("adjust", description="correct a run's head for class frequencies, untrained")
    adjust.add_argument("run", type=Path, metavar="RUN", help="run folder")
    adjust.add_argument(
        "--tau",
        type=float,
        metavar="T",
        help="subtract T log p_c from the logits of class c (default: 1, with --norms 0)",
    )
    adjust.add_argument("--norms", action="store_true", help="bring the rows of the head to equal norm")
    adjust.add_argument("--out", type=Path, metavar="FOLDER", help="new folder (default: RUN-adjusted)")
    adjust.set_defaults(call=_adjust, again="the same command begins anew")


def _adjust(options: argparse.Namespace) -> None:
    from fedvision.adjustment import adjust

    out = options.out or options.run.with_name(f"{options.run.name}-adjusted")
    tau = options.tau if options.tau is not None else 0.0 if options.norms else 1.0
    made = adjust(options.run, out, tau=tau, norms=options.norms)
    for notice in made.notices:
        complain(f"note: {notice}")
    done = [*(["rows of equal norm"] if options.norms else []), *([f"tau = {tau:g}"] if tau else [])]
    show(
        f"{made.folder}: {' and '.join(done)}; measure it:\nfedvision evaluate {made.folder} --data SOURCE",
        recorded=str(made.folder),
    )
