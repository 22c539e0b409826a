"""The check of a number's range, for all arguments that experiments and callers set."""

from __future__ import annotations

import math


def check_range(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    **values: float,
) -> None:
    """Refuse numbers outside a range, NaN and infinite ones.

    Args:
        above: They must be greater.
        at_least: They must be as great or greater.
        below: They must be smaller.
        at_most: They must be as small or smaller.
        **values: The numbers by the names of their arguments.

    Raises:
        ValueError: A number is out of range; the sentence names the first.
    """
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
        if bound is not None
    ]
    for name, value in values.items():
        inside = (
            (above is None or value > above)
            and (at_least is None or value >= at_least)
            and (below is None or value < below)
            and (at_most is None or value <= at_most)
        )
        if not inside or math.isinf(value):
            finite = ["finite"] if math.isinf(value) and below is at_most is None else []
            raise ValueError(f"{name} must be {' and '.join(bounds + finite)}, not {value}")
