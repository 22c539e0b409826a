"""What was measured last of a run, in one view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedvision.tasks.confusion import ConfusionCounts


class Worst(NamedTuple):
    """The client with the lowest accuracy."""

    client: str
    accuracy: float
    images: int | None
    """On how many images it rests; None where it was not recorded."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One view's last measurement."""

    view: str
    """``"server"``, ``"local"`` or ``"personal"``."""
    round: int
    """In which round it was made."""
    scores: dict[str, float | None]
    """Shares of 1 by name."""
    confusion: ConfusionCounts
    """By true and predicted class; of no classes where it was not recorded."""
    loss: float | None
    """Mean cross-entropy, nats."""
    worst: Worst | None
    """The client with the lowest accuracy."""
    labels: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Where an image may have several labels: columns [C] by name; else empty."""
    pixels: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Where pixels have classes: columns [C] by name; else empty."""
    withheld: int = 0
    """Clients of whom only sums with others are known, or nothing."""
    personal: bool = False
    """Whether each client measured a model of its own."""
    part: tuple[int, int] | None = None
    """How many clients measured and how many there are, where these are not all."""
