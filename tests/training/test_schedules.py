"""Learning-rate schedules by hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch

from fedvision.training import schedules


def test_constant_is_one() -> None:
    assert [schedules.constant()(round, 9) for round in (1, 5, 9)] == [1, 1, 1]


def test_cosine_falls_from_one_to_its_end() -> None:
    factor = schedules.cosine(final=0.1)
    assert factor(1, 10) == pytest.approx(1.0)
    assert factor(6, 10) == pytest.approx(0.55)
    assert factor(4, 10) == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.3 * math.pi)) / 2)
    assert factor(11, 10) == pytest.approx(0.1), "one round after the last"


def test_cosine_is_torchs_and_still_trains_in_the_last_round() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    rates = []
    for _ in range(4):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert [schedules.cosine()(round, 4) for round in range(1, 5)] == pytest.approx(rates)
    assert rates[-1] == pytest.approx(0.1464466)


def test_warmup_rises_in_equal_steps_before_the_cosine() -> None:
    factor = schedules.cosine(warmup=3)
    assert [factor(round, 20) for round in (1, 2, 3, 4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factor(12, 19) == pytest.approx(0.5)
    assert factor(19, 19) > 0


def test_a_single_round_has_the_full_rate() -> None:
    assert schedules.cosine()(1, 1) == 1.0


def test_step_and_exponential() -> None:
    assert [schedules.step(every=3, factor=0.5)(r, 9) for r in (1, 3, 4, 7)] == [1, 1, 0.5, 0.25]
    assert schedules.exponential(gamma=0.9)(3, 9) == pytest.approx(0.81)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (schedules.cosine, {"final": 2.0}),
        (schedules.cosine, {"warmup": -1}),
        (schedules.step, {"every": 0}),
        (schedules.step, {"every": 1, "factor": 0.0}),
        (schedules.exponential, {"gamma": 1.5}),
    ],
)
def test_arguments_out_of_range_are_refused(make: object, arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make(**arguments)  # type: ignore[operator]
