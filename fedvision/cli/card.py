"""The verb that writes a run's model card."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.errors import ConfigError
from fedvision.streams import show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    card = verbs.add_parser("card", description="write the model card of a run")
    card.add_argument("run", type=Path, metavar="RUN", help="run folder")
    card.add_argument("--out", type=Path, metavar="FILE", help="the card (default: model_card.md in RUN)")
    card.add_argument("--name", default="", help="name of the model (default: the experiment's)")
    card.add_argument("--license", default="", help="identifier of the licence, such as apache-2.0")
    card.set_defaults(call=_card)


def _card(options: argparse.Namespace) -> None:
    from fedvision.reporting.card_file import write_card
    from fedvision.reporting.model_card import CardOptions
    from fedvision.runs.folder import RunFolder

    if options.license and not _LICENCE.fullmatch(options.license):
        raise ConfigError(
            f"--license must be an identifier such as apache-2.0, cc-by-4.0 or other, not {options.license!r}"
        )
    out: Path | None = options.out
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        why = "this is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise ConfigError(f"--out {out}: {why}; name a file in a folder that is there")
    given = bool(options.name or options.license)
    card = CardOptions(name=options.name, license=options.license) if given else None
    path = write_card(RunFolder.read(options.run), card, out)
    show(f"model card: {path}", recorded=str(path))
