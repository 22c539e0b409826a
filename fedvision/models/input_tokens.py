"""What a network reads beside the pixels as tokens for a Transformer, absent ones masked.

A number is its value times a learned vector, a category has a vector of its own, a given vector is projected,
and each has a learned offset (Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data",
arXiv 2106.11959, section 3.3). A text is a token a word: the mean of the vectors of its character n-grams, as
``data.text`` numbers them, projected, and its place in the text.

Shape letters: B batch, T tokens, D features of a token, W numbers of an image's row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from fedvision.errors import ConfigError
from fedvision.inputs import GRAMS, Batch, InputConfig, Inputs, images_of, places, width
from fedvision.models.init import glorot

_TEXT_DIM = 32
"""Features of an n-gram's vector."""


class Tokens(NamedTuple):
    """Further tokens of a batch."""

    tokens: torch.Tensor
    """[B, T, D]; zeros where absent."""
    present: torch.Tensor
    """bool [B, T]."""


class InputTokens(nn.Module):
    """Rows of further inputs [B, W] -> tokens.

    Args:
        inputs: What is in a row.
        dim: D.
    """

    def __init__(self, inputs: Mapping[str, InputConfig], dim: int) -> None:
        super().__init__()
        self.width = width(inputs)
        self.places = tuple((name, place) for name, _, place in places(inputs))
        self.encoders = nn.ModuleDict(
            {f"of_{name}": _encoder(one, dim) for name, one in sorted(inputs.items())}
        )

    def forward(self, rows: torch.Tensor) -> Tokens:
        """Return the tokens of rows [B, W], input by input."""
        parts = [self.encoders[f"of_{name}"](rows[:, place]) for name, place in self.places]
        tokens, present = zip(*parts, strict=True)
        return Tokens(torch.cat(tokens, dim=1), torch.cat(present, dim=1))


def separate(batch: Batch, reader: InputTokens | None) -> tuple[torch.Tensor, Tokens | None]:
    """Return the images of a batch and its further tokens, where somebody reads such.

    Raises:
        ConfigError: The batch has other further inputs than those that are read.
    """
    rows = batch.further if isinstance(batch, Inputs) else None
    found, wanted = None if rows is None else rows.shape[1], None if reader is None else reader.width
    if found != wanted:
        raise ConfigError(
            f"the network reads {wanted or 'no'} numbers of [model.inputs] beside an image's pixels, and "
            f"{found or 'none'} came with them; give it the experiment's columns"
        )
    return images_of(batch), None if rows is None or reader is None else reader(rows)


class NumberToken(nn.Module):
    """Values [B, n], NaN where absent, as one token ``W x + b``."""

    def __init__(self, numbers: int, dim: int) -> None:
        super().__init__()
        self.project = glorot(nn.Linear(numbers, dim))

    def forward(self, values: torch.Tensor) -> Tokens:
        """Return one token for each row."""
        present = ~values[:, :1].isnan()
        tokens = self.project(values.nan_to_num(nan=0.0)) * present
        return Tokens(tokens[:, None], present)


class CategoryToken(nn.Module):
    """Numbers of categories [B, 1], NaN where absent, as one token of each category's own."""

    def __init__(self, categories: int, dim: int) -> None:
        super().__init__()
        self.vectors = _vectors(categories, dim)

    def forward(self, codes: torch.Tensor) -> Tokens:
        """Return one token for each row."""
        present = ~codes.isnan()
        return Tokens(self.vectors(codes.nan_to_num(nan=0.0).long()) * present[..., None], present)


class TextTokens(nn.Module):
    """Buckets of words' n-grams [B, words * GRAMS], NaN where there is none, as a token a word."""

    def __init__(self, words: int, buckets: int, dim: int) -> None:
        super().__init__()
        self.words = words
        self.vectors = _vectors(buckets, _TEXT_DIM)
        self.project = glorot(nn.Linear(_TEXT_DIM, dim))
        self.order = nn.Parameter(torch.empty(words, dim).normal_(std=0.02))

    def forward(self, buckets: torch.Tensor) -> Tokens:
        """Return a token for each place of a word."""
        grams = buckets.reshape(buckets.shape[0], self.words, GRAMS)
        there = ~grams.isnan()
        vectors = self.vectors(grams.nan_to_num(nan=0.0).long()) * there[..., None]
        mean = vectors.sum(2) / there.sum(2, keepdim=True).clamp(min=1)
        present = there.any(2)
        return Tokens((self.project(mean) + self.order) * present[..., None], present)


def _vectors(number: int, dim: int) -> nn.Embedding:
    """Return learned vectors, of length 1 in the mean of their squares at first."""
    vectors = nn.Embedding(number, dim)
    nn.init.normal_(vectors.weight, std=dim**-0.5)
    return vectors


_ENCODERS: Mapping[str, Callable[[InputConfig, int], nn.Module]] = {
    "number": lambda one, dim: NumberToken(1, dim),
    "category": lambda one, dim: CategoryToken(len(one.categories), dim),
    "text": lambda one, dim: TextTokens(one.words, one.buckets, dim),
    "vector": lambda one, dim: NumberToken(one.width, dim),
}


def _encoder(one: InputConfig, dim: int) -> nn.Module:
    return _ENCODERS[one.kind](one, dim)
