"""Integrated gradients: how much each pixel adds to a class's logit on the way from an empty image.

Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", arXiv 1703.01365: ``(x - x') * mean of
df/dx over the straight line from x' to x``. The attributions add up to f(x) - f(x') (completeness), which is
checked, and the line is divided finer until they do. The empty image x' is 0 after normalisation, the mean
colour. The integral is Gauss's over u of points u^3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedvision.explanation.scored_network import ScoredNetwork
from fedvision.inputs import Batch, images_of, with_images

POINTS, MOST_POINTS = 16, 256
"""Points on the line at first, and at most."""
TOLERANCE = 0.05
"""Error of the sum, as a share of f(x) - f(x'), that is accepted; or so many nats where that is more."""


_POWER = 3
"""Points are at u^3 of the line: near the empty image, where all that a norm sees is small, gradients change
fastest."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What the pixels of one image add."""

    values: torch.Tensor
    """Attributions float32 [channels, H, W]."""
    change: float
    """f(x) - f(x') in nats."""
    error: float
    """Their sum less the change, without sign."""

    @property
    def complete(self) -> bool:
        """Whether the sum is the change within the tolerance."""
        return self.error <= TOLERANCE * max(1.0, abs(self.change))


def integrated_gradients(scored: ScoredNetwork, batch: Batch, label: int) -> Attribution:
    """Return the attributions of one image.

    Args:
        scored: The network, in evaluation mode.
        batch: The image [1, channels, H, W], with what is read beside it, which stays as it is.
        label: The class.
    """
    image = images_of(batch).detach()
    with torch.no_grad():
        ends = [with_images(batch, one) for one in (image, torch.zeros_like(image))]
        full, empty = (float(scored.logits(one)[0, label]) for one in ends)
    points = POINTS
    while True:
        mean = _mean_gradient(scored, batch, image, label, points)
        values = (image * mean)[0]
        error = abs(float(values.cpu().double().sum()) - (full - empty))
        found = Attribution(values=values.float(), change=full - empty, error=error)
        if found.complete or points >= MOST_POINTS:
            return found
        points *= 4


def _mean_gradient(
    scored: ScoredNetwork, batch: Batch, image: torch.Tensor, label: int, points: int
) -> torch.Tensor:
    """Return the mean of the logit's gradient over the line, [1, channels, H, W], a point at a time."""
    total = torch.zeros_like(image)
    nodes, weights = np.polynomial.legendre.leggauss(points)
    for u, weight in zip(((nodes + 1) / 2).tolist(), (weights / 2).tolist(), strict=True):
        x = (image * u**_POWER).requires_grad_()
        logit = scored.logits(with_images(batch, x))[0, label]
        (gradient,) = torch.autograd.grad(logit, x, allow_unused=True, materialize_grads=True)
        total += weight * _POWER * u ** (_POWER - 1) * gradient
    return total
