"""How unequal clients are: measures of label skew and quantity skew from class counts [K, C].

Client k has the mixture p_k = counts_k / n_k, the federation q = sum_k counts_k / sum_k n_k.

- effective classes: exp(H(p)), H Shannon's entropy; the Hill number of order 1 (Hill 1973,
  doi:10.2307/1934352): 1 for a single class, C for a uniform mixture
- Jensen-Shannon divergence: H(m) - (H(p) + H(q)) / 2 with m = (p + q) / 2, in bits, 0 to 1 (Lin 1991,
  doi:10.1109/18.61115)
- total variation: sum |p - q| / 2, 0 to 1: the share of a client's images that must change for p = q
- Gini coefficient of sizes: 0 where all are equal, (K - 1) / K where one client has everything
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Spread(NamedTuple):
    """One measure over all clients."""

    median: float
    minimum: float
    maximum: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Skew:
    """Measures of K clients, or of a sample of K; a client without images has 0 in every one."""

    sizes: NDArray[np.int64]
    """int64 [K]: images."""
    classes: NDArray[np.int64]
    """int64 [K]: classes with at least one image."""
    effective_classes: Floats
    """[K]: exp of the entropy of the client's mixture, 1 to C."""
    imbalance: Floats
    """[K]: images of the most frequent class / the rarest one that the client has."""
    jensen_shannon: Floats
    """[K]: Jensen-Shannon divergence from the federation's mixture, bits."""
    total_variation: Floats
    """[K]: total variation distance from the federation's mixture."""
    gini: float
    """Gini coefficient of the sizes."""
    global_imbalance: float
    """Imbalance of the federation's sum."""
    summary: Mapping[str, Spread]
    """Median, minimum and maximum over clients of every [K] measure, by its name."""


def measure(
    counts: NDArray[np.int64],
    totals: NDArray[np.int64] | None = None,
    images: NDArray[np.int64] | None = None,
) -> Skew:
    """Measure the skew of a split.

    Args:
        counts: int64 [K, C], images of each class on each client, K >= 1, C >= 1.
        totals: int64 [C], images of each class in the federation, where ``counts`` holds a sample of its
            clients; by default their sum.
        images: int64 [K], images of each client; by default the sums of its counts, which they are where an
            image is of one class.

    Raises:
        ValueError: ``counts`` is no [K, C] array of numbers >= 0.
    """
    if counts.ndim != 2 or 0 in counts.shape or counts.min() < 0:
        raise ValueError(f"counts must be [clients, classes] and >= 0, not of shape {list(counts.shape)}")
    sizes = counts.sum(axis=1)
    total = counts.sum(axis=0) if totals is None else totals
    p = counts / np.maximum(sizes, 1)[:, None]
    q = total / max(int(total.sum()), 1)
    entropy = _entropy(p)
    filled = sizes > 0
    divergence = _entropy((p + q) / 2) - (entropy + _entropy(q)) / 2
    by_client = {
        "sizes": sizes if images is None else images,
        "classes": np.count_nonzero(counts, axis=1),
        "effective_classes": np.exp2(entropy) * filled,
        "imbalance": _imbalance(counts),
        "jensen_shannon": np.clip(divergence, 0, 1) * filled,
        "total_variation": np.abs(p - q).sum(axis=1) / 2 * filled,
    }
    return Skew(
        **by_client,
        gini=_gini(by_client["sizes"]),
        global_imbalance=float(_imbalance(total[None])[0]),
        summary={
            name: Spread(float(np.median(v)), float(v.min()), float(v.max())) for name, v in by_client.items()
        },
    )


def _entropy(p: Floats) -> Floats:
    """Return Shannon's entropy over the last axis, bits; 0 log 0 is 0."""
    logs = np.log2(p, where=p > 0, out=np.zeros_like(p))
    entropy: Floats = -(p * logs).sum(axis=-1)
    return entropy


def _imbalance(counts: NDArray[np.int64]) -> Floats:
    rarest = np.where(counts > 0, counts, np.iinfo(np.int64).max).min(axis=1)
    ratio: Floats = counts.max(axis=1) / rarest
    return ratio


def _gini(sizes: NDArray[np.int64]) -> float:
    """Return sum_i (2 i - K - 1) n_i / (K sum n) over sizes in rising order, i from 1."""
    clients = len(sizes)
    rank = 2 * np.arange(1, clients + 1) - clients - 1
    return float((rank * np.sort(sizes)).sum() / max(clients * int(sizes.sum()), 1))
