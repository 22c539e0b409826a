"""The check of ranges: which numbers pass, and the sentence about those that do not."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError
from fedvision.ranges import check_range
from fedvision.types import PluginSpec

ZERO_IN_TABLES = {
    "seed": "the first of all seeds",
    "partition.tail_clients": "leaves the split as it is",
    "loss.local_share": "the federation's prior alone",
    "transforms.mean": "black, for images that are centred already",
    "transforms.size": "images as they are",
    "transforms.crop": "switches it off",
    "transforms.rotation": "switches it off",
    "transforms.cutout": "switches it off",
    "transforms.mixup": "switches it off",
    "transforms.views": "keeps none",
    "training.steps": "counts epochs",
    "training.momentum": "switches it off",
    "training.weight_decay": "switches it off",
    "training.clip_norm": "does not clip",
    "evaluation.holdout": "clients measure nothing",
    "evaluation.patience": "never ends early",
    "round.deadline": "waits for all",
    "round.wait_after_quorum": "waits until the deadline",
    "round.staleness": "counts all answers in full",
    "round.buffer": "waits for all",
    "round.concurrency": "takes all that are selected",
    "round.norm_limit": "takes all changes",
    "round.set_aside_after": "no limit",
    "clock.seconds_per_image": "all answer at once",
    "clock.spread": "equal clients",
    "clock.jitter": "equal rounds",
}
"""Numbers of an experiment's own tables that may be 0, and what it means."""


def _numbers(cls: type[Any], table: str = "") -> Iterator[tuple[str, type[Any], str, bool]]:
    """Yield the dotted key, class and field of each number of nested tables, and whether it is a float."""
    for name, hint in typing.get_type_hints(cls).items():
        options = {hint, *typing.get_args(hint)}
        if dataclasses.is_dataclass(hint) and hint is not PluginSpec:
            yield from _numbers(typing.cast("type[Any]", hint), f"{table}{name}.")
        elif options & {int, float}:
            yield f"{table}{name}", cls, name, float in options


NUMBERS = list(_numbers(ExperimentConfig))


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ({"above": 0}, (1e-9, 3), (0, -1, math.nan)),
        ({"at_least": 1}, (1, 7), (0, 0.999, math.nan)),
        ({"at_least": 0, "below": 1}, (0, 0.999), (1, -1e-9, math.nan, math.inf)),
        ({"above": 0, "at_most": 1}, (1, 1e-9), (0, 1.001, math.nan, math.inf)),
    ],
)
def test_bounds(bounds: dict[str, float], inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    for value in inside:
        check_range(**bounds, x=value)
    for value in outside:
        with pytest.raises(ValueError, match=r"^x must be "):
            check_range(**bounds, x=value)


def test_the_sentence_names_the_first_wrong_number() -> None:
    with pytest.raises(ValueError, match=r"^b must be >= 0 and < 0\.5, not 0\.5$"):
        check_range(at_least=0, below=0.5, a=0.1, b=0.5, c=9)
    with pytest.raises(ValueError, match=r"^lr must be > 0 and finite, not inf$"):
        check_range(above=0, lr=math.inf)


@pytest.mark.parametrize(("key", "cls", "name", "real"), NUMBERS, ids=[row[0] for row in NUMBERS])
def test_tables_of_an_experiment(key: str, cls: type[Any], name: str, real: bool) -> None:
    """-1, NaN, infinity, and 0 where it is not listed, are refused by a sentence that begins with the key."""
    needed: dict[str, Any] = {"data": PluginSpec(use="digits")} if cls is ExperimentConfig else {}
    several = typing.get_origin(typing.get_type_hints(cls)[name]) is tuple
    absurd = [-1, *((math.nan, math.inf, -math.inf) if real else ())]
    if key in ZERO_IN_TABLES:
        cls(**needed, **{name: (0,) if several else 0})
    else:
        absurd.append(0)
    for value in absurd:
        with pytest.raises(ConfigError, match=rf"^{re.escape(key)} "):
            cls(**needed, **{name: (value,) if several else value})


def test_list_of_zeros_in_tables() -> None:
    assert ZERO_IN_TABLES.keys() <= {key for key, *_ in NUMBERS}
