"""Nonlinear features between a backbone and a linear head: many fixed functions that the seed draws.

A linear head on them is a nonlinear one on the backbone's features, and as nothing in them is trained it
still has a closed form. Features are standardised with constants of the whole federation, which the closed
form measures first, and rounded to whole steps. What follows is arithmetic on whole numbers, so an image's
features have the same bits on any machine and in any batch. Nothing that is drawn is sent: all machines draw
it from the experiment's seed.

::

    random-relu     relu(W x / sqrt(D) + b)       W: 1 or -1 with equal chance; b: standard normal
    bucket-groups   [x > t_1, ..., x > t_L] of every feature, shuffled, G in a group: 1 in place of the
                    group's number, 0 elsewhere

Shape letters: B batch, D features, M features after the expansion.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from statistics import NormalDist

import torch
from torch import nn

from fedvision import registry, seeding
from fedvision.config import ModelConfig
from fedvision.errors import ConfigError
from fedvision.models.init import glorot
from fedvision.models.standardised import CUT, STEPS, in_steps
from fedvision.ranges import check_range
from fedvision.types import PluginSpec

_EXACT = 1 << 24
"""Whole numbers below it are exact in float32, and so are sums of them in any order."""


class Expansion(nn.Module, ABC):
    """Features [B, D] -> features [B, M].

    Args:
        in_features: D.
        out_features: M.
    """

    mean: torch.Tensor
    """Of the backbone's features over the federation, float32 [D]; 0 until somebody measures it."""
    deviation: torch.Tensor
    """Theirs, float32 [D]; 1 until then."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("deviation", torch.ones(in_features))
        self.out_features = out_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return [B, M]."""
        with torch.autocast(features.device.type, enabled=False):  # fewer bits do not hold the whole numbers
            return self.expand(in_steps(features.float(), short(self.mean), short(self.deviation)))

    @abstractmethod
    def expand(self, steps: torch.Tensor) -> torch.Tensor:
        """Return [B, M] of standardised features in whole steps [B, D]."""


def short(numbers: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers rounded to 16 bits (Veltkamp 1968).

    The mean of equal constants of several clients may differ from them in its last bit; a short one that has
    moved by a few of these is rounded to what it was.
    """
    scaled = numbers * 257.0
    return scaled - (scaled - numbers)


class RandomRelu(Expansion):
    """Random linear combinations of the features, cut off at 0 (ACIL, arXiv 2205.14922, has one such layer).

    Args:
        in_features: D.
        features: M, >= 1.
        seed: From which they are drawn, >= 0; left out, the experiment's.

    Raises:
        ValueError: An argument is out of range, or sums of so many features are not exact.
    """

    weight: torch.Tensor
    shift: torch.Tensor

    def __init__(self, *, in_features: int, features: int = 4000, seed: int = 0) -> None:
        check_range(at_least=1, features=features)
        check_range(at_least=0, seed=seed)
        if in_features * CUT >= _EXACT:
            raise ValueError(
                f"sums of {in_features} features are not exact; it takes {_EXACT // CUT} at most"
            )
        super().__init__(in_features, features)
        drawn = seeding.torch_stream(seed, "random-relu")
        weight = 2.0 * torch.randint(0, 2, (features, in_features), generator=drawn) - 1
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("shift", torch.randn(features, generator=drawn), persistent=False)

    def expand(self, steps: torch.Tensor) -> torch.Tensor:
        """Return relu(W x / sqrt(D) + b)."""
        sums = torch.nn.functional.linear(steps, self.weight)
        return torch.relu(sums / (STEPS * math.sqrt(steps.shape[-1])) + self.shift)


class BucketGroups(Expansion):
    """SAFLe's sparse features: which side of thresholds a group of features is on (arXiv 2512.03336).

    Each threshold makes two overlapping buckets of a feature, and the thresholds divide a normal distribution
    into parts of equal probability.

    Args:
        in_features: D.
        thresholds: L, of each feature, >= 1.
        digits: G, of these D L binary digits in a group, >= 1 and <= 12.
        groups: Groups, >= 0, each of 2^G features; 0 takes as many as hold every digit once.
        seed: From which the digits are shuffled, >= 0; left out, the experiment's.

    Raises:
        ValueError: An argument is out of range.
    """

    threshold: torch.Tensor
    order: torch.Tensor
    place: torch.Tensor
    numbers: torch.Tensor

    def __init__(
        self, *, in_features: int, thresholds: int = 1, digits: int = 4, groups: int = 0, seed: int = 0
    ) -> None:
        check_range(at_least=1, thresholds=thresholds)
        check_range(at_least=1, at_most=12, digits=digits)
        check_range(at_least=0, groups=groups, seed=seed)
        found = in_features * thresholds
        number = groups or -(-found // digits)
        super().__init__(in_features, number * 2**digits)
        self.digits = digits
        drawn, needed = seeding.torch_stream(seed, "bucket-groups"), number * digits
        # Every digit once before any is taken again.
        order = torch.cat([torch.randperm(found, generator=drawn) for _ in range(-(-needed // found))])[
            :needed
        ]
        normal = NormalDist()
        cuts = [round(STEPS * normal.inv_cdf(k / (thresholds + 1))) for k in range(1, thresholds + 1)]
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("threshold", torch.tensor(cuts).float(), persistent=False)
        self.register_buffer("place", (2 ** torch.arange(digits)).float(), persistent=False)
        self.register_buffer("numbers", torch.arange(2**digits).float(), persistent=False)

    def expand(self, steps: torch.Tensor) -> torch.Tensor:
        """Return for each group 1 at its number, 0 elsewhere."""
        above = (steps.unsqueeze(-1) > self.threshold).flatten(1)[:, self.order]
        number = (above.reshape(above.shape[0], -1, self.digits) * self.place).sum(-1)
        return (number.unsqueeze(-1) == self.numbers).flatten(1).to(steps.dtype)


class ExpandedLinear(nn.Linear):
    """A linear head on the features that an expansion makes of the backbone's.

    Args:
        expansion: Features [B, D] -> [B, M].
        outputs: Numbers of logits.
        bias: Whether it has one.
    """

    def __init__(self, expansion: Expansion, outputs: int, bias: bool = True) -> None:
        super().__init__(expansion.out_features, outputs, bias=bias)
        self.expansion = expansion

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return super().forward(self.expansion(input))


def with_seed(config: ModelConfig, seed: int) -> ModelConfig:
    """Return ``[model]`` with the seeds of its expansion and head, which a finished model needs.

    A head without a seed stays as it is.
    """
    expand, head = config.expand, config.head
    if expand.use:
        expand = PluginSpec(use=expand.use, args={"seed": seed, **expand.args})
    if head.use and "seed" in registry.parameters("head", head.use):
        head = PluginSpec(use=head.use, args={"seed": seed, **head.args})
    return replace(config, expand=expand, head=head)


def expanded_head(head: nn.Linear, features: int, config: ModelConfig, seed: int) -> ExpandedLinear:
    """Return a head that takes an expansion of the features, with first weights of its own.

    Args:
        head: The head that it replaces.
        features: D.
        config: ``[model]``.
        seed: The experiment's.

    Raises:
        PluginError: The expansion is unknown, or its arguments do not fit.
        ConfigError: It is no expansion.
    """
    spec = with_seed(config, seed).expand
    expansion = registry.build("expansion", spec, in_features=features)
    if not isinstance(expansion, Expansion):
        raise ConfigError(
            f"[expansion] use = {spec.use!r}: it is a {type(expansion).__name__}, not a "
            "fedvision.models.expansions.Expansion"
        )
    found = ExpandedLinear(expansion, head.out_features, bias=head.bias is not None)
    glorot(found)
    return found
