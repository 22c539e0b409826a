"""The comparison of ways to spread images of several labels."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "tasks"))

import stratification
from stratification import RULES, figures, iterative


def test_iterative_stratification_by_hand() -> None:
    """Of four images with label 0, of which two have label 1, a half is one with and one without it."""
    table = np.array([[1, 0], [1, 1], [1, 0], [1, 1], [0, 0], [0, 0]], np.uint8)
    for seed in range(20):
        held = iterative(table, 0.5, np.random.default_rng(seed))
        assert table[held].sum(0).tolist() == [2, 1]
        assert held.sum() == 3


def test_labels_come_nearer_to_the_wanted_numbers_than_by_the_rarest_label_alone() -> None:
    none, rarest, every = (figures(rule, 300, 20)[0] for rule in RULES.values())
    assert every < 0.5 * rarest < 0.5 * none


@pytest.mark.parametrize("name", ["no strata", "rarest label"])
def test_a_labels_only_image_is_held_out_as_often_as_any_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = np.zeros((10, 2), np.uint8)
    only[3] = 1
    only[:7, 0] = 1
    monkeypatch.setattr(stratification, "drawn", lambda images, rng: only)
    assert figures(RULES[name], 10, 600)[2][0] == pytest.approx(0.2, abs=0.05)
    assert figures(iterative, 10, 50)[2][0] == 0
