"""What a client says that declines, and what anybody may put there instead."""

from __future__ import annotations

import math

import pytest

from fedvision.deployment.declining import AGAIN_S, Declined


@pytest.mark.parametrize("again", [0.5, 3600.0])
def test_what_is_said_is_read(again: float) -> None:
    read = Declined.from_text(Declined("its hours are 20:00-06:00", again).to_text())
    assert (str(read), read.again) == ("its hours are 20:00-06:00", again)


def test_never_is_a_number_all_the_same() -> None:
    assert "Infinity" not in Declined("no", math.inf).to_text()
    assert Declined.from_text(Declined("no", math.inf).to_text()).again == 365 * 86_400


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no", "no"),
        ("", ""),
        ("[1]", "[1]"),
        ('{"reason": "no"}', '{"reason": "no"}'),
        ('{"reason": "no", "again": "soon"}', '{"reason": "no", "again": "soon"}'),
        ('{"reason": "no", "again": -1}', "no"),
        ('{"reason": "no", "again": NaN}', "no"),
        ('{"reason": "a\\nb", "again": Infinity}', "a b"),
        (f'{{"reason": "no", "again": 1{"0" * 400}}}', f'{{"reason": "no", "again": 1{"0" * 400}}}'),
        ("[" * 100_000, "[" * 999 + "…"),
    ],
)
def test_anything_else_is_a_reason_or_none(text: str, reason: str) -> None:
    read = Declined.from_text(text)
    assert (str(read), read.again) == (reason, AGAIN_S)
