"""A run folder's figures as TensorBoard scalars, for those who keep their runs there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvision.errors import ConfigError
from fedvision.runs.folder import RunFolder
from fedvision.tasks.confusion import ConfusionCounts

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NO_TENSORBOARD = "TensorBoard is not installed; run pip install 'fedvision[tensorboard]', or leave it out"


def write_scalars(folder: RunFolder, logs: Path | None = None) -> Path:
    """Write losses, scores, per-class recall, bytes and seconds of every round, and return their folder.

    Scalars that an earlier call wrote there are replaced.

    Args:
        folder: The run.
        logs: Where they go; ``tensorboard`` in the run folder by default.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    target = logs or folder.path / "tensorboard"
    writer = _writer(target)
    classes = folder.split().get("classes", [])
    seconds = {line["round"]: line for line in folder.timings()}
    with writer:
        for record in folder.rounds():
            for tag, value in _scalars(record, classes, seconds.get(record["round"], {})).items():
                writer.add_scalar(_tag(tag), value, record["round"])
    return target


def _writer(target: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(NO_TENSORBOARD) from error
    for old in target.glob("events.out.tfevents.*"):
        old.unlink()
    return SummaryWriter(str(target))


def _scalars(record: dict[str, Any], classes: list[str], seconds: dict[str, float]) -> dict[str, float]:
    """Return a round's scalars by tag; what was not measured is left out."""
    found: dict[str, float | None] = {"train/loss": record.get("train_loss"), "train/lr": record.get("lr")}
    found |= {f"bytes/{way}": count for way, count in (record.get("bytes") or {}).items()}
    found |= {f"seconds/{stage}": value for stage, value in seconds.items() if stage != "round"}
    for view in ("server", "local"):
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


def _tag(text: str) -> str:
    """Return a tag that TensorBoard takes as it is: only the first slash parts group and name."""
    group, _, name = text.partition("/")
    return f"{group}/{_plain(name)}"


def _plain(name: str) -> str:
    return re.sub(r"[^-\w. ]", "_", name)
