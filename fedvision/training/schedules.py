"""Learning-rate schedules over rounds: ``schedule(round, rounds) -> factor`` on the first round's rate.

Local optimisers start anew in every round, so a rate that falls must fall with the round, not with local
steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedvision.ranges import check_range

Schedule = Callable[[int, int], float]


def constant() -> Schedule:
    """The same learning rate in every round."""
    return lambda round, rounds: 1.0


def cosine(*, final: float = 0.0, warmup: int = 0) -> Schedule:
    """Half a cosine from 1 towards ``final`` (Loshchilov & Hutter 2017, arXiv 1608.03983), without restarts.

    Of T rounds after the warm-up, round t (from 0) has ``final + (1 - final) (1 + cos(pi t / T)) / 2``, as in
    the paper and in ``torch.optim.lr_scheduler.CosineAnnealingLR`` with ``T_max = T``: ``final`` would come
    one round after the last, so with ``final = 0`` the last round still trains.

    Args:
        final: Factor towards which it falls, 0 <= final <= 1.
        warmup: Rounds that rise linearly to 1 before the cosine begins.

    Raises:
        ValueError: An argument is out of range.
    """
    check_range(at_least=0, at_most=1, final=final)
    check_range(at_least=0, warmup=warmup)

    def factor(round: int, rounds: int) -> float:
        if round <= warmup:
            return round / (warmup + 1)
        passed = (round - warmup - 1) / (rounds - warmup)
        return final + (1 - final) * (1 + math.cos(math.pi * passed)) / 2

    return factor


def step(*, every: int, factor: float = 0.1) -> Schedule:
    """Multiply by ``factor`` after each ``every`` rounds.

    Raises:
        ValueError: ``every`` < 1 or ``factor`` not in (0, 1].
    """
    check_range(above=0, at_most=1, factor=factor)
    return exponential(gamma=factor, every=every)


def exponential(*, gamma: float = 0.99, every: int = 1) -> Schedule:
    """Multiply by ``gamma`` after each ``every`` rounds.

    Raises:
        ValueError: ``gamma`` is not in (0, 1] or ``every`` < 1.
    """
    check_range(above=0, at_most=1, gamma=gamma)
    check_range(at_least=1, every=every)
    return lambda round, rounds: float(gamma ** ((round - 1) // every))
