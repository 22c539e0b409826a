"""What clients' personal models reach beside the global one, on the same images."""

from __future__ import annotations

from typing import NamedTuple

from fedvision.formatting import percent, score_name
from fedvision.reporting.run_data import Measurement, RunData

OWN = "personal"
"""The view of a run whose clients keep a model beside the global one."""


class PersonalRow(NamedTuple):
    """A class on the images that clients hold out."""

    name: str
    train: int
    """Training images in the federation."""
    images: int
    """Images on which it was measured."""
    shared: float | None
    """Recall of the global model."""
    own: float | None
    """Recall of the personal models."""


def personal_rows(facts: RunData) -> list[PersonalRow]:
    """Return the classes, the most frequent first; none without personal models beside the global one."""
    both = _both(facts)
    if both is None or facts.own_counts:
        return []
    shared, own = (facts.class_facts(one) for one in both)
    if not any(one.recall is not None for one in own):
        return []
    return [
        PersonalRow(mine.name, mine.train, mine.test, his.recall, mine.recall)
        for his, mine in zip(shared, own, strict=True)
    ]


def personal_sentence(facts: RunData) -> str:
    """Return what the personal models reach, and the global one; empty where there are none."""
    both = _both(facts)
    if both is None:
        return ""
    shared, own = both
    key = next((key for key in ("balanced_accuracy", "mean_ap", "accuracy") if key in own.scores), "")
    if not key:
        return ""
    name = score_name(key, facts.kinds)
    text = (
        f"On images that clients hold out, {name} is {percent(own.scores[key])} with each client's personal "
        f"model, and {percent(shared.scores.get(key))} with the global one"
    )
    if own.worst is None or shared.worst is None:
        return f"{text}."
    what = score_name(facts.compared_by)
    return (
        f"{text}; the lowest {what} of a client is {percent(own.worst.accuracy)} ({own.worst.client}), with "
        f"the global model {percent(shared.worst.accuracy)} ({shared.worst.client})."
    )


def _both(facts: RunData) -> tuple[Measurement, Measurement] | None:
    """Return the last measurements of the global and of the personal models on clients' images."""
    shared, own = facts.measurement("local"), facts.measurement(OWN)
    return None if shared is None or own is None else (shared, own)
