"""Numbers in words that people read: shares, sizes, times."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

SCORES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mean_ap": "mean AP",
    "mean_iou": "mean IoU",
    "mean_dice": "mean Dice",
    "case_dice": "mean Dice of an image",
    "micro_dice": "micro Dice",
    "pixel_accuracy": "pixel accuracy",
    "macro_auroc": "mean AUROC",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP of small boxes",
    "ap_medium": "AP of medium boxes",
    "ap_large": "AP of large boxes",
    "ar1": "AR1",
    "ar10": "AR10",
    "ar100": "AR100",
    "ar_small": "AR of small boxes",
    "ar_medium": "AR of medium boxes",
    "ar_large": "AR of large boxes",
    "head": "head",
    "medium": "medium",
    "tail": "tail",
}
"""The scores that every run has, in the order in which they are shown, with their names in text."""
GROUPS = ("head", "medium", "tail")
"""Scores of the frequent, the middle and the rare classes or labels."""
STAGES: Mapping[str, str] = {
    "train": "training",
    "server": "measuring on the server",
    "local": "measuring on clients",
}
"""The stages of a round, in their order, with their names in text."""


def typed(path: Path | str) -> str:
    """Return a path as it is typed in a command: quoted where a shell would take it apart."""
    return shlex.quote(str(path))


def score_name(key: str, of: str = "classes") -> str:
    """Return a score's name in text; one that is not built in keeps its own.

    Args:
        key: As records have it.
        of: What there are frequent and rare ones of.
    """
    name = SCORES.get(key, key.replace("_", " "))
    return f"{name} {of}" if key in GROUPS else name


def in_order(keys: set[str]) -> list[str]:
    """Return score keys as they are shown: the built-in ones first, then others by name."""
    return [key for key in SCORES if key in keys] + sorted(keys - set(SCORES))


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share of 1 such as 0.8423 as ``"84.2%"``; None, which is not measured, as a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def ends(low: float, high: float, digits: int = 1) -> str:
    """Return the ends of an interval, shares of 1: ``"82.1 to 86.0"``, in percent."""
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with a fixed number of decimals, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def whole(value: int) -> str:
    """Return a whole number with its thousands apart: ``"12,345"``."""
    return f"{value:,}"


def size(count: float) -> str:
    """Return bytes as ``"123 B"``, ``"1.2 kB"``, ``"3.4 MB"``: powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Return seconds as ``"0.42 s"``, ``"12.3 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def sample(shown: int, of: int) -> str:
    """Return ``"100 of 1,000,000 clients"``."""
    return f"{whole(shown)} of {plural(of, 'client')}"


def plural(count: int, stem: str, many: str = "s", one: str = "") -> str:
    """Return ``"1 client"``, ``"2 clients"``; with other endings ``"2 classes"``, ``"2 replies"``."""
    return f"{whole(count)} {stem}{one if count == 1 else many}"


def one_line(text: str, longest: int = 1000) -> str:
    """Return what somebody else wrote as it may stand on a screen or in a record.

    Args:
        text: As it came; control characters and line breaks become spaces.
        longest: Characters at most, the mark of a cut included.
    """
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(letter if letter.isprintable() else " " for letter in cut)


def listed(names: Sequence[str], longest: int = 5) -> str:
    """Return names with commas; of more than ``longest``, the first ones and how many more there are."""
    more = f" and {whole(len(names) - longest)} more" if len(names) > longest else ""
    return ", ".join(names[:longest]) + more
