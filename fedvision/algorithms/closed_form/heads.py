"""Linear heads from sums of weighted products of features: ridge regression, and discriminant analysis.

With features x [D] of an image of class y and its weight w_y, all sums over all images::

    ridge   min sum w_y |V x + b - e_y|^2 + lambda |V|^2        e_y: 1 at y, else 0; b is not penalised
    lda     logit_c = mu_c^T S^-1 x - mu_c^T S^-1 mu_c / 2      S: pooled covariance within classes, shrunk

Ridge with w = 1 is what Fed3R (ICML 2024) and AFL (CVPR 2025) compute in one round, up to the bias, which
these do without. Weights by class are those of AIR (arXiv 2408.10349), which balances class-wise products.
The covariance is weighted likewise, and no class has a larger prior than another.

Shape letters: C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedvision.algorithms.closed_form.rounding import total_weight
from fedvision.cores import one_thread
from fedvision.models.standardised import STEPS

NEVER = 10.0
"""Logits by which an absent class is below the mean of the others."""


@dataclass(frozen=True, kw_only=True)
class FeatureSums:
    """Exact sums over images, in whole steps of standardised features."""

    count: NDArray[np.int64]
    """Images of each class [C]."""
    sum: NDArray[np.int64]
    """Sums of the features by class [C, D]."""
    product: NDArray[np.int64]
    """Upper triangle of the sum of weighted products, row by row [D (D + 1) / 2]."""
    weight: NDArray[np.int64]
    """Weight of an image by its class [C]."""

    @property
    def features(self) -> int:
        """Return D."""
        return int(self.sum.shape[1])

    def products(self) -> torch.Tensor:
        """Return the sum of weighted products in deviations, float64 [D, D]; weights as they are."""
        size = self.features
        rows, columns = torch.triu_indices(size, size)
        whole = torch.zeros(size, size, dtype=torch.float64)
        whole[rows, columns] = torch.from_numpy(self.product).double() / STEPS**2
        return whole + whole.triu(1).T


@dataclass(frozen=True, kw_only=True)
class Head:
    """A linear head on standardised features, float64."""

    weight: torch.Tensor
    """[C, D]."""
    bias: torch.Tensor
    """[C]."""

    def on_features(self, mean: torch.Tensor, deviation: torch.Tensor) -> Head:
        """Return the head that takes features as they are.

        Args:
            mean: Of the features [D].
            deviation: Of the features [D].
        """
        weight = self.weight / deviation
        return Head(weight=weight, bias=self.bias - weight @ mean)


def ridge(sums: FeatureSums, regularization: float) -> Head:
    """Return the ridge regression of one-hot labels.

    Args:
        sums: With at least one image.
        regularization: lambda divided by the number of images, > 0, where weights have the mean 1.
    """
    images, scale = int(sums.count.sum()), total_weight(sums.count, sums.weight)
    weight = torch.from_numpy(sums.weight).double() * images / scale
    count = torch.from_numpy(sums.count).double()
    by_class = torch.from_numpy(sums.sum).double() / STEPS
    with one_thread():
        mean = weight @ by_class / images
        centred = sums.products() * images / scale - images * torch.outer(mean, mean)
        targets = weight[:, None] * (by_class - count[:, None] * mean)
        penalty = regularization * images * torch.eye(sums.features, dtype=torch.float64)
        solution = _solve(centred + penalty, targets.T).T
        return Head(weight=solution, bias=weight * count / images - solution @ mean)


def lda(sums: FeatureSums, shrinkage: float) -> Head:
    """Return the linear discriminants of classes that are equally likely.

    A class without images gets logits below the mean of the others', so it is never predicted.

    Args:
        sums: With at least one image.
        shrinkage: Share of the covariance's mean variance, the same in all directions, that takes the place
            of the covariance, 0 < shrinkage <= 1.
    """
    count, weight = torch.from_numpy(sums.count).double(), torch.from_numpy(sums.weight).double()
    present = count > 0
    with one_thread():
        means = torch.from_numpy(sums.sum).double()[present] / STEPS / count[present][:, None]
        factors = (weight * count)[present]
        scatter = sums.products() - (means * factors[:, None]).T @ means
        freedom = float((weight * (count - 1))[present].sum())
        covariance = scatter / freedom if freedom > 0 else torch.zeros_like(scatter)
        variance = float(covariance.diagonal().mean())
        isotropic = torch.eye(sums.features, dtype=torch.float64) * (variance if variance > 0 else 1.0)
        own = _solve((1 - shrinkage) * covariance + shrinkage * isotropic, means.T).T
        bias = -(own * means).sum(1) / 2
        head = Head(weight=own.mean(0).repeat(len(count), 1), bias=(bias.mean() - NEVER).repeat(len(count)))
        head.weight[present], head.bias[present] = own, bias
        return head


def in_whole_numbers(heads: list[Head]) -> dict[str, torch.Tensor]:
    """Return heads for features in whole steps, all numbers rounded so that sums of them are exact.

    Returns:
        ``weight`` int32 [G, C, D] and ``bias`` int64 [G, C]; each head has a scale of its own.
    """
    weights, biases = [], []
    for head in heads:
        largest = max(
            float(head.weight.abs().max()), float(head.bias.abs().max()) * STEPS / (1 << 20), 2.0**-60
        )
        scale = float(1 << 24) / largest
        weights.append((head.weight * scale).round().int())
        biases.append((head.bias * scale * STEPS).round().long())
    return {"weight": torch.stack(weights), "bias": torch.stack(biases)}


def _solve(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the solution [D, C] of a symmetric positive definite system."""
    factor = torch.linalg.cholesky((matrix + matrix.T) / 2)
    return torch.cholesky_solve(right, factor)
