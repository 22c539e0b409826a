"""A run's figures as named scalars of each round, for programs that keep curves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fedvision.runs.folder import RunFolder
from fedvision.tasks.confusion import ConfusionCounts


def scalars(folder: RunFolder) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each round with its losses, scores, per-class recall, bytes and seconds.

    A name has the form ``group/name``, as ``server/balanced_accuracy`` and ``server recall/cat``; signs other
    than letters, digits, spaces, dots, dashes and underscores are underscores. What was not measured is left
    out.
    """
    classes = folder.split().get("classes", [])
    seconds = {line["round"]: line for line in folder.timings()}
    for record in folder.rounds():
        found = _scalars(record, classes, seconds.get(record["round"], {}))
        yield record["round"], {_name(name): float(value) for name, value in found.items()}


def _scalars(record: dict[str, Any], classes: list[str], seconds: dict[str, float]) -> dict[str, float]:
    found: dict[str, float | None] = {"train/loss": record.get("train_loss"), "train/lr": record.get("lr")}
    found |= {f"bytes/{way}": count for way, count in (record.get("bytes") or {}).items()}
    found |= {f"seconds/{stage}": value for stage, value in seconds.items() if stage != "round"}
    for view in ("server", "local", "personal"):
        facts = record.get(view) or {}
        found[f"{view}/loss"] = facts.get("loss")
        found |= {f"{view}/{key}": value for key, value in (facts.get("scores") or {}).items()}
        found |= _recalls(view, facts, classes)
    return {tag: value for tag, value in found.items() if value is not None}


def _recalls(view: str, facts: dict[str, Any], classes: list[str]) -> dict[str, float]:
    if not facts.get("confusion"):
        return {}
    confusion = ConfusionCounts.from_record(facts["confusion"])
    rows, right = confusion.images_of, confusion.right_of
    names = [_plain(name) for name in classes] if len(classes) == len(rows) else []
    names = names or [str(c) for c in range(len(rows))]
    alike = Counter(names)
    tags = [name if alike[name] == 1 else f"{name} {c}" for c, name in enumerate(names)]
    return {f"{view} recall/{tag}": float(right[c] / rows[c]) for c, tag in enumerate(tags) if rows[c]}


def _name(text: str) -> str:
    """Return a name that such programs take as it is: only the first slash parts group and name."""
    group, _, name = text.partition("/")
    return f"{group}/{_plain(name)}"


def _plain(name: str) -> str:
    return re.sub(r"[^-\w. ]", "_", name)
