"""What an update looks like on its way: names, types and shapes of its tensors.

One ``UpdateSchema`` defines what the wire may fetch, the client what it makes, and the server what it lets
through. This module needs no torch: the client's connection lives in a process without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedvision.types import State

CONSTANT = "constant."
"""Begins the name of a group of tensors that stays the same in a whole run, and travels to a client once."""
ITEM_BYTES: Mapping[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "float32": 4,
    "float64": 8,
}
"""Types that travel, by NumPy's name."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, type (a key of ``ITEM_BYTES``) and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes without padding."""
        return self.elements * ITEM_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether its elements are floating-point numbers."""
        return self.dtype.startswith("float")

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class UpdateSchema:
    """The tensors of an update, each name once."""

    tensors: tuple[TensorSpec, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a name that stands there twice.

        Raises:
            ValueError: There is one.
        """
        names = [spec.name for spec in self.tensors]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"an update would have two tensors named {twice!r}")

    @classmethod
    def of(cls, state: State) -> UpdateSchema:
        """Return the schema of tensors as they travel; bfloat16, unknown to NumPy, is float32 there."""
        return cls(
            tuple(TensorSpec(name, wire_dtype(str(t.dtype)), tuple(t.shape)) for name, t in state.items())
        )

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.size for spec in self.tensors)

    def mismatch(self, found: Iterable[TensorSpec]) -> str | None:
        """Return in one sentence how other tensors, in any order, differ from these; None if they do not."""
        specs = tuple(found)
        if specs == self.tensors:
            return None
        wanted, given = {one.name: one for one in self.tensors}, {one.name: one for one in specs}
        if missing := sorted(wanted.keys() - given.keys()):
            return f"the tensor {missing[0]!r} is missing ({len(missing)} in all)"
        if extra := sorted(given.keys() - wanted.keys()):
            return f"the tensor {extra[0]!r} is not expected ({len(extra)} in all)"
        for name, spec in given.items():
            if spec != wanted[name]:
                return f"the tensor {name!r} is {spec}, not {wanted[name]}"
        return None


def wire_dtype(dtype: str) -> str:
    """Return the name of the type in which a tensor of a torch type travels.

    Args:
        dtype: As torch writes it, with or without ``torch.``.
    """
    name = dtype.removeprefix("torch.")
    return "float32" if name == "bfloat16" else name
