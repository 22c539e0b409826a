"""Half precision on the way: 2 bytes a number.

A change keeps 11 significant bits, rounded to nearest; below 6e-5 it loses bits, and below 3e-8 it becomes 0.
Above 65,504 there is no number to send: such an update is refused, not cut off, as it comes of a training
that diverges. What rounding takes away is not kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fedvision.types import State
from fedvision.updates.base import UpdateTransform
from fedvision.updates.schema import UpdateSchema

if TYPE_CHECKING:
    import numpy as np


class Float16(UpdateTransform):
    """Sends floats in half precision, which halves the bytes; whole numbers stay as they are."""

    def schema(self, schema: UpdateSchema) -> UpdateSchema:
        """Return the schema with float16 in place of all floats."""
        return UpdateSchema(
            tuple(replace(spec, dtype="float16") if spec.is_float else spec for spec in schema.tensors)
        )

    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        """Return the rounded tensors; NaN and infinity stay what they are, for the server to refuse.

        Raises:
            ValueError: A finite value is too large for float16.
        """
        return {name: self._rounded(name, tensor) for name, tensor in tensors.items()}, {}

    def decode(self, tensors: State, schema: UpdateSchema) -> State:
        """Return the tensors in the types that were encoded."""
        return {spec.name: tensors[spec.name].to(getattr(torch, spec.dtype)) for spec in schema.tensors}

    @staticmethod
    def _rounded(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        half = tensor.to(torch.float16)
        if bool((half.isinf() & tensor.isfinite()).any()):
            largest = float(tensor[tensor.isfinite()].abs().max())
            raise ValueError(
                f"the change of {name!r} reaches {largest:.3g} and float16 ends at 65,504; the training "
                "diverges: lower training.lr, or take float16 out of [[update]]"
            )
        return half
