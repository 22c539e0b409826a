"""A model without its numbers: shapes, types and modules, with a single zero where a tensor's memory was.

The program that runs a federation holds the global model as a state. The network itself is only asked for its
structure until a process trains or measures with it, so its tensors need not be there a second time, nor
travel to every process beside the state.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn


def to_meta(model: nn.Module, names: Iterable[str]) -> None:
    """Replace tensors by zeros of the same shape and type that take no memory, in place.

    Args:
        model: The network; a tensor that it has under several names keeps them.
        names: Of the tensors, as in ``state_dict``.
    """
    tensors = model.state_dict(keep_vars=True)
    for name in names:
        own = tensors[name]
        own.data = torch.zeros((), dtype=own.dtype, device=own.device).expand(own.shape)


def filled(model: nn.Module) -> nn.Module:
    """Return a model whose tensors have memory: itself, or of a hollow one a copy with zeros."""
    if not any(map(_is_hollow, model.state_dict(keep_vars=True).values())):
        return model
    model = copy.deepcopy(model)
    for tensor in model.state_dict(keep_vars=True).values():
        if _is_hollow(tensor):
            tensor.data = tensor.data.contiguous()
    return model


def _is_hollow(value: object) -> bool:
    if not isinstance(value, torch.Tensor) or value.numel() < 2:
        return False
    return value.untyped_storage().nbytes() < value.nbytes
