"""Clipping: an update's L2 norm is at most a bound.

``d <- d min(1, max_norm / ||d||)`` over all parameters together, as in McMahan, Ramage, Talwar, Zhang 2018,
"Learning Differentially Private Recurrent Language Models", arXiv 1710.06963. Buffers, such as the statistics
of batch normalisation, are measured and not learned: they are neither part of the norm nor scaled. Clipping
alone is no privacy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fedvision.ranges import check_range
from fedvision.types import State
from fedvision.updates.base import UpdateTransform
from fedvision.updates.schema import UpdateSchema

if TYPE_CHECKING:
    import numpy as np


class Clip(UpdateTransform):
    """Scales an update down so that its L2 norm over all parameters is at most a bound.

    Args:
        max_norm: The bound, > 0, in units of the parameters.

    Raises:
        ValueError: An argument is out of range.
    """

    linear = True  # nothing is decoded

    def __init__(self, *, max_norm: float) -> None:
        check_range(above=0, max_norm=max_norm)
        self.max_norm = max_norm

    def schema(self, schema: UpdateSchema) -> UpdateSchema:
        """Return the same schema.

        Raises:
            ValueError: A tensor is of whole numbers: the norm would not be that of the change.
        """
        refuse_whole_numbers(schema)
        return schema

    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        """Return the scaled tensors; an update within the bound stays as it is, to the bit."""
        norm = l2_norm(tensors)
        if norm <= self.max_norm:
            return tensors, {}
        factor = self.max_norm / norm
        return {name: tensor * factor for name, tensor in tensors.items()}, {}


def l2_norm(tensors: State) -> float:
    """Return the L2 norm of all tensors together, in float64; not finite where an element is not."""
    norms = [
        float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
        for tensor in tensors.values()
        if tensor.numel()
    ]
    return math.hypot(*norms)


def refuse_whole_numbers(schema: UpdateSchema) -> None:
    """Refuse tensors that are no floats.

    Raises:
        ValueError: There is one; the message names the remedy.
    """
    for spec in schema.tensors:
        if not spec.is_float:
            raise ValueError(
                f"it gets the {spec.dtype} tensor {spec.name!r} of the [[update]] table before it and takes "
                "floats alone; put this table before that one"
            )
