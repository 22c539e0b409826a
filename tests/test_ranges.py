"""The check of ranges: which numbers pass, and the sentence about those that do not."""

from __future__ import annotations

import math

import pytest

from fedvision.ranges import check_range


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
