"""A pre-norm Transformer encoder: tokens [B, T, F] -> one vector [B, D] (arXiv 1706.03762, 2010.11929).

Written from linear layers instead of ``nn.TransformerEncoderLayer``, whose evaluation takes another path with
other bits than its training; the test compares both.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.checks import one_of
from fedvision.models.init import glorot
from fedvision.models.input_tokens import Tokens
from fedvision.models.tokens import Positions
from fedvision.ranges import check_range

POOLS = ("class", "mean")


class Transformer(nn.Module):
    """Embedding, positions, encoder blocks, pooling: tokens [B, T, F] -> [B, D].

    Args:
        features: F; 0 for one that reads further tokens alone.
        grid: (h, w) of the tokens, h w = T.
        dim: D, a multiple of ``heads``.
        depth: Encoder blocks.
        heads: Attention heads.
        mlp_ratio: Hidden units of a block's perceptron / D.
        dropout: Share of features dropped after the embedding and after each half of a block.
        positional: ``"learned"`` or ``"sine"``.
        pool: ``"class"`` returns a class token of its own, ``"mean"`` the mean of all tokens.

    Raises:
        ValueError: A key is out of range.
    """

    def __init__(
        self,
        features: int,
        grid: tuple[int, int],
        *,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        positional: str = "learned",
        pool: str = "class",
    ) -> None:
        super().__init__()
        check_range(at_least=1, dim=dim, depth=depth, heads=heads)
        check_range(at_least=0, below=1, dropout=dropout)
        check_range(above=0, mlp_ratio=mlp_ratio)
        one_of("pool", pool, POOLS)
        if int(dim * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio must be at least 1 / dim, which is {1 / dim:g}, not {mlp_ratio}")
        self.embedding = glorot(nn.Linear(features, dim)) if features else None
        self.positions = Positions(grid, dim, positional) if features else None
        self.class_token = nn.Parameter(_class_token(features, dim)) if pool == "class" else None
        self.dropout = nn.Dropout(dropout)
        hidden = int(dim * mlp_ratio)
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: torch.Tensor | None, further: Tokens | None = None) -> torch.Tensor:
        """Return one vector [B, D] for each sequence.

        Args:
            tokens: [B, T, F]; None where ``features`` is 0.
            further: Tokens [B, S, D] that are read behind these, absent ones by none.
        """
        parts = list[torch.Tensor]()
        if tokens is not None and self.embedding is not None and self.positions is not None:
            parts.append(self.positions(self.embedding(tokens)))
        if further is not None:
            parts.append(further.tokens)
        if self.class_token is not None:
            parts.insert(0, self.class_token.expand(parts[0].shape[0], -1, -1))
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        mask = None
        if further is not None:
            own = x.shape[1] - further.tokens.shape[1]
            mask = torch.cat([further.present.new_ones(x.shape[0], own), further.present], dim=1)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return x[:, 0] if self.class_token is not None else _mean(x, mask)


def _class_token(features: int, dim: int) -> torch.Tensor:
    """Return the first class token [1, 1, D].

    Where nothing but the token itself is read, as of an image of which all inputs are absent, zeros would go
    through norm after norm as zeros, each of which makes the gradient 300 times larger.
    """
    token = torch.zeros(1, 1, dim)
    return token if features else token.normal_(std=dim**-0.5)


def _mean(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean [B, D] of the tokens [B, T, D] that are there, one at least."""
    if mask is None:
        return x.mean(1)
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Block(nn.Module):
    """Self-attention and a perceptron, each after a norm and beside a shortcut: [B, T, D] -> [B, T, D]."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.expand, self.contract = glorot(nn.Linear(dim, hidden)), glorot(nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return tokens of the same shape; those that ``mask`` (bool [B, T]) leaves out are read by none."""
        normed = self.norm1(x)
        x = x + self.dropout(self.attention(normed, normed, mask))
        hidden = self.dropout(F.gelu(self.expand(self.norm2(x))))
        y: torch.Tensor = x + self.dropout(self.contract(hidden))
        return y


class Attention(nn.Module):
    """Multi-head attention ``softmax(q k^T / sqrt(D / heads)) v`` (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        dim: D, a multiple of ``heads``.
        heads: Attention heads.

    Raises:
        ValueError: ``heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads = {heads} does not divide dim = {dim}; set dim to a multiple of heads")
        self.heads = heads
        self.query, self.key_value = glorot(nn.Linear(dim, dim)), glorot(nn.Linear(dim, 2 * dim))
        self.out = glorot(nn.Linear(dim, dim))

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return [B, T, D]: for each token of x [B, T, D], what it reads from memory [B, S, D].

        Args:
            x: Who reads.
            memory: What is read.
            mask: bool [B, S]: which tokens of the memory are there, one at least; None where all are.
        """
        query, key, value = self._projected(x, memory)
        there = None if mask is None else mask[:, None, None, :]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=there)
        y: torch.Tensor = self.out(read.transpose(1, 2).flatten(2))
        return y

    def explicit(
        self, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what ``forward`` returns, but for rounding, and the weights [B, heads, T, S] of each memory.

        They are slower to compute than what is read with them.
        """
        query, key, value = self._projected(x, memory)
        scores = query @ key.transpose(-2, -1) * key.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = scores.softmax(-1)
        y: torch.Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return y, weights

    def _projected(
        self, x: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries [B, heads, T, D / heads], keys and values [B, heads, S, D / heads]."""
        key, value = self.key_value(memory).chunk(2, dim=-1)
        return self._split(self.query(x)), self._split(key), self._split(value)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, heads, T, D / heads]."""
        batch, tokens, dim = x.shape
        return x.reshape(batch, tokens, self.heads, dim // self.heads).transpose(1, 2)
