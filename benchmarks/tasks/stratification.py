"""By what images of several labels are spread between training and holdout: one label each, or all of them.

    python benchmarks/tasks/stratification.py

fedvision spreads an image by the rarest label that it has (``data.targets.strata``), and holds each one out
with exactly the same probability. Beside it: no strata, and iterative stratification (Sechidis, Tsoumakas,
Vlahavas 2011, "On the Stratification of Multi-Label Data", ECML PKDD 2011), which takes the labels from the
rarest to the most frequent one and gives each image to the part that lacks most of the label. So where
training lacks 0.8 images of a label and the holdout 0.2, the only one always goes to training.

Printed for random tables of ten labels with a long tail of 50 are the distance of a label's held-out images
from the wanted number, in images, over labels that occur; and the share of images held out that are the only
one, or one of two, with some label. Of an unbiased holdout it is the wanted share.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedvision.data.partition.holdout import held_out
from fedvision.data.targets import strata

LABELS, IMBALANCE, SHARE = 10, 50.0, 0.2
TABLES = {50: 500, 200: 500, 1000: 50}
"""How many tables of how many images are drawn."""
FEW = 50
"""Labels from which on a share is printed."""
Table = NDArray[np.uint8]
Rule = Callable[[Table, float, np.random.Generator], NDArray[np.bool_]]


def iterative(table: Table, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which images [N] of a table of labels [N, L] are held out by iterative stratification."""
    images, _ = table.shape
    has, left, held = table.astype(bool), np.ones(images, bool), np.zeros(images, bool)
    wanted = np.array([1 - share, share]) * images
    of_label = np.outer([1 - share, share], table.sum(0))
    while left.any():
        remaining = has[left].sum(0)
        if not remaining.any():
            break
        rarest = np.flatnonzero(remaining == remaining[remaining > 0].min())
        label = int(rng.choice(rarest))
        for image in rng.permutation(np.flatnonzero(left & has[:, label])).tolist():
            part = _needier(of_label[:, label], wanted, rng)
            held[image], left[image] = part == 1, False
            of_label[part, has[image]] -= 1
            wanted[part] -= 1
    for image in rng.permutation(np.flatnonzero(left)).tolist():
        part = _needier(wanted, wanted, rng)
        held[image] = part == 1
        wanted[part] -= 1
    return held


def _needier(first: NDArray[np.float64], then: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Return the part that lacks more by the first numbers, of equals by the others, else any."""
    for lack in (first, then):
        if lack[0] != lack[1]:
            return int(lack[1] > lack[0])
    return int(rng.integers(2))


RULES: dict[str, Rule] = {
    "no strata": lambda table, share, rng: held_out(np.zeros(len(table), np.int64), share, rng),
    "rarest label": lambda table, share, rng: held_out(strata(table), share, rng),
    "iterative": iterative,
}


def drawn(images: int, rng: np.random.Generator) -> Table:
    """Return which labels images have, uint8 [N, L]: each by itself, by odds that fall from 1/2 to 1/100."""
    odds = 0.5 * IMBALANCE ** -(np.arange(LABELS) / (LABELS - 1))
    return (rng.random((images, LABELS)) < odds).astype(np.uint8)


def figures(rule: Rule, images: int, tables: int) -> tuple[float, float, list[float]]:
    """Return the mean and largest distance from wanted numbers, and the held shares of few.

    Returns:
        The distance in images, a mean over labels and tables; the largest one of a table, a mean over tables;
        and the share that is held out of images of labels with one image, and with two (NaN of fewer than
        ``FEW`` such labels).
    """
    distance, largest = [], []
    few: dict[int, list[float]] = {1: [], 2: []}
    for seed in range(tables):
        rng = np.random.default_rng(seed)
        table = drawn(images, rng)
        held = rule(table, SHARE, rng)
        counts, taken = table.sum(0, dtype=np.int64), table[held].sum(0, dtype=np.int64)
        own = np.abs(taken - SHARE * counts)[counts > 0]
        distance.append(float(own.mean()))
        largest.append(float(own.max()))
        for number, shares in few.items():
            shares += (taken[counts == number] / number).tolist()
    shares = [float(np.mean(found)) if len(found) >= FEW else float("nan") for found in few.values()]
    return float(np.mean(distance)), float(np.mean(largest)), shares


def main() -> None:
    """Print the table."""
    print("| images | rule | distance, images | largest | held of a label's only image | of two |")
    print("|---|---|---|---|---|---|")
    for images, tables in TABLES.items():
        for name, rule in RULES.items():
            mean, largest, few = figures(rule, images, tables)
            shares = " | ".join("–" if np.isnan(share) else f"{share:.2f}" for share in few)
            print(f"| {images} | {name} | {mean:.2f} | {largest:.2f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
