"""Learning-rate schedules over rounds: ``schedule(round, rounds) -> factor`` on the first round's rate.

Local optimisers start anew in every round, so a rate that falls must fall with the round, not with local
steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
    if not 0 <= final <= 1:
        raise ValueError(f"final must be between 0 and 1, not {final}")
    if warmup < 0:
        raise ValueError(f"warmup must be >= 0, not {warmup}")

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
    if every < 1:
        raise ValueError(f"every must be >= 1, not {every}")
    return exponential(gamma=factor, every=every)


def exponential(*, gamma: float = 0.99, every: int = 1) -> Schedule:
    """Multiply by ``gamma`` after each ``every`` rounds.

    Raises:
        ValueError: ``gamma`` is not in (0, 1].
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"the factor must be > 0 and <= 1, not {gamma}")
    return lambda round, rounds: float(gamma ** ((round - 1) // every))
