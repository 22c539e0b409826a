"""Three ways to make one vector of an extractor's tokens and a Transformer's class token.

Shape letters: B batch, T tokens, F features of an extractor's token, D features of the class token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from fedvision.models.init import glorot
from fedvision.models.transformer import Attention


class Join(nn.Module):
    """Makes one vector [B, out] from the extractor's tokens [B, T, F] and the class token [B, D]."""

    out: int
    """Features of the joint vector."""


class Concat(Join):
    """The extractor's normed mean and the class token, side by side."""

    def __init__(self, features: int, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.out = features + dim

    def forward(self, tokens: torch.Tensor, class_token: torch.Tensor) -> torch.Tensor:
        """Return [B, F + D]."""
        return torch.cat([self.norm(tokens.mean(1)), class_token], dim=1)


class Gated(Join):
    """A learned blend of the extractor's mean and the class token, feature by feature."""

    def __init__(self, features: int, dim: int, heads: int) -> None:
        super().__init__()
        self.project = _projection(features, dim)
        self.gate = glorot(nn.Linear(2 * dim, dim))
        self.out = dim

    def forward(self, tokens: torch.Tensor, class_token: torch.Tensor) -> torch.Tensor:
        """Return [B, D]."""
        pooled = self.project(tokens.mean(1))
        gate = torch.sigmoid(self.gate(torch.cat([pooled, class_token], dim=1)))
        return torch.lerp(class_token, pooled, gate)


class CrossAttention(Join):
    """The class token with what it reads from the extractor's tokens."""

    def __init__(self, features: int, dim: int, heads: int) -> None:
        super().__init__()
        self.project = _projection(features, dim)
        self.attention = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.out = dim

    def forward(self, tokens: torch.Tensor, class_token: torch.Tensor) -> torch.Tensor:
        """Return [B, D]."""
        read = self.attention(class_token.unsqueeze(1), self.project(tokens)).squeeze(1)
        joint: torch.Tensor = self.norm(class_token + read)
        return joint


def _projection(features: int, dim: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(features), glorot(nn.Linear(features, dim)))


JOINS: Mapping[str, Callable[[int, int, int], Join]] = {
    "concat": Concat,
    "gated": Gated,
    "cross-attention": CrossAttention,
}
"""Name -> ``join(F, D, heads)``."""
