"""``exports.jsonl``: smaller and faster versions of a run's model, with what was measured of each.

One line a version::

    {"name": "ONNX, int8", "kind": "quantized", "file": "model-int8.onnx", "run": null, "bytes": 172926,
     "latency_ms": {"1": 0.05, "32": 0.02}, "accuracy": 0.728, "balanced_accuracy": 0.7284,
     "worst_class": "Shirt", "worst_recall": 0.116, "images": 10000, "part": "test images of fashion-mnist",
     "machine": {"processor": "...", "threads": 1, "onnxruntime": "1.32.0"}, "about": {...}}

The run's own model stands there too, as ``"kind": "original"``, measured beside a version. A version that is
made again takes the place of its earlier line: the last line of a name counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from fedvision.errors import RunFolderError
from fedvision.files import append_line, json_line, read_lines, recording

FILE = "exports.jsonl"
Kind: TypeAlias = Literal["original", "export", "quantized", "pruned", "distilled", "run"]
"""How a version was made; ``"run"`` is a network of another run, trained on its own."""


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One version of a run's model; None is what was not measured."""

    name: str
    """In words, such as ``"ONNX, int8"``; the same version has the same name."""
    kind: Kind
    """How it was made."""
    file: str | None = None
    """Its file, relative to the run folder where it lies in it."""
    run: str | None = None
    """Its run folder, where it has one of its own."""
    bytes: int | None = None
    """Size of the file with its weights."""
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds an image by the images of a batch, ``{"1": 0.05, "32": 0.02}``, on one thread."""
    accuracy: float | None = None
    """Share of images whose class is right; None where an image may have several labels."""
    balanced_accuracy: float | None = None
    """Mean of the classes' recalls, likewise."""
    worst_class: str | None = None
    """The class with the lowest recall."""
    worst_recall: float | None = None
    """That recall."""
    images: int | None = None
    """On how many images the scores rest."""
    part: str | None = None
    """Which images these are, in words."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """Processor, threads and versions with which it was measured."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of how it was made."""


def append_version(run: Path, version: ModelVersion) -> None:
    """Add a version to a run folder.

    Raises:
        RecordError: The disk is full or refuses.
    """
    with recording("a version of the model", run / FILE):
        append_line(run / FILE, json_line(vars(version)))


def read_versions(run: Path) -> list[ModelVersion]:
    """Return a run's versions, the original first, each as it was measured last.

    Raises:
        RunFolderError: A line is damaged.
    """
    found: dict[str, ModelVersion] = {}
    known = ModelVersion.__dataclass_fields__
    for number, line in enumerate(read_lines(run / FILE), start=1):
        if not isinstance(line.get("name"), str) or line.get("kind") not in get_args(Kind):
            raise RunFolderError(
                f"{run / FILE}, line {number}: it names no version of a model; remove the line, or the file"
            )
        version = ModelVersion(**{key: value for key, value in line.items() if key in known})
        found.pop(version.name, None)
        found[version.name] = version
    return sorted(found.values(), key=lambda one: one.kind != "original")
