"""A model without its numbers: shapes, types and modules, with a single zero where a tensor's memory was.

The program that runs a federation holds the global model as a state. The network itself only gives its
structure until a process trains or measures with it, so its tensors need not be there a second time, nor
travel to every process beside the state.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from fedvision.models.state import load_state
from fedvision.types import State


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


def model_with(model: nn.Module, state: State) -> nn.Module:
    """Return a copy of a model that holds a state; what this leaves out is as in the model.

    Args:
        model: The network, storage-free or not; it stays as it is.
        state: Tensors by name.

    Raises:
        ConfigError: A name is unknown to the model or a shape differs.
    """
    own = filled(model)
    own = copy.deepcopy(own) if own is model else own
    load_state(own, state)
    return own


def _is_hollow(value: object) -> bool:
    if not isinstance(value, torch.Tensor) or value.numel() < 2:
        return False
    return value.untyped_storage().nbytes() < value.nbytes
