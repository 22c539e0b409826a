"""All built-in strategies, losses and samplers, and the tables of an experiment in which each can run.

Tests that hold every method take them from here. A new built-in is in all of them by its row in the table of
built-ins; one that needs more than its name (a teacher, personal tensors) says so in ``tables``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedvision import registry

LOSSES = sorted(use for use, one in registry.BUILTINS["loss"].items() if "classification" in one.tasks)
NETWORKS = sorted(use for use, one in registry.BUILTINS["model"].items() if "classification" in one.tasks)
"""Networks that name the class of an image."""
SAMPLERS = sorted(registry.BUILTINS["sampler"])
STRATEGIES = sorted(registry.BUILTINS["strategy"])
TRAINING = [use for use in STRATEGIES if getattr(registry.resolve("strategy", use).call, "trains", True)]
"""Strategies whose clients train: the others have no loss and no sampler."""
PRIORS = ("local", "global", "mixed")
OWN_LOSS = {"fedgrab"}
"""Strategies that are a loss of their own, beside which ``[loss]`` is left out."""

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "ccvr": {"every": 1, "steps": 10},
    "creff": {"samples": 5, "match_steps": 5, "steps": 20},
    "fedgan": {"warmup": 1, "maps": 4, "noise": 4},
    "fedrela": {"warmup": 1, "share": 0.2},
    "fedyoyo": {"warmup": 1},
    "krum": {"malicious": 1},
    "rucr": {"samples": 5, "steps": 10},
}
"""Arguments with which a small run shows what a strategy does."""
_MODEL: dict[str, dict[str, Any]] = {
    "flexlora": {"train": "lora", "lora": {"rank": 1, "alpha": 1.0}},
    "closed-form": {"frozen": ["backbone.*"]},
    "fedrod": {"head": "personalized", "personal": ["head.personal.*"]},
    "fedloge": {"head": "realigned", "personal": ["head.personal.*"]},
}
"""Keys of ``[model]`` that a strategy is about."""
_NETWORK: dict[str, dict[str, Any]] = {"fedbn": {"use": "resnet8", "norm": "batch", "width": 4}}
"""The network of a strategy that cannot do with any."""


def tables(use: str, model: dict[str, Any], *, teacher: Path | None = None) -> dict[str, Any]:
    """Return the tables ``strategy`` and ``model`` of an experiment in which a built-in strategy can run.

    Args:
        use: Its name.
        model: The network's table, of a backbone and a linear head.
        teacher: Folder of a finished run on the same classes, for what distils.
    """
    strategy = {"use": use, **_ARGUMENTS.get(use, {})}
    kind = registry.resolve("strategy", use).call
    if use == "distillation":
        strategy["teacher"] = str(teacher)
    personal = {"personal": ["head.*"]} if getattr(kind, "needs_personal", False) else {}
    model = _NETWORK.get(use, model)
    if use == "fedloge" and "dense" in model:
        model = {**model, "dense": 16}  # as many features as classes, or more
    return {"strategy": strategy, "model": {**model, **personal, **_MODEL.get(use, {})}}
