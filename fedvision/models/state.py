"""Which tensors of a model travel, and how they leave and enter it.

Only floating-point tensors travel: an integer, such as batch norm's ``num_batches_tracked``, has no average.
Each client begins every round with the model's first values of these, whoever trained before in its process.
A tensor that the model has under two names travels once, under the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedvision.errors import ConfigError, nearest
from fedvision.models.freezing import frozen_names
from fedvision.types import State

Travel = Literal["all", "no-batch-norm-statistics", "trainable"]


def shared_names(model: nn.Module, shared: Travel) -> tuple[str, ...]:
    """Return the names of the tensors that travel where none is personal, in the order of ``state_dict``.

    Args:
        model: The network.
        shared: ``"all"``; ``"no-batch-norm-statistics"``, which keeps running means and variances on the
            client (SiloBN; Andreux et al. 2020, arXiv 2008.07424); or ``"trainable"``, only parameters that
            are trained. Frozen tensors never do.
    """
    frozen = frozenset(frozen_names(model))
    tensors = {name: tensor for name, tensor in floating(model).items() if name not in frozen}
    if shared == "trainable":
        return tuple(name for name, tensor in tensors.items() if tensor.requires_grad)
    local = _batch_norm_statistics(model) if shared == "no-batch-norm-statistics" else frozenset()
    return tuple(name for name, tensor in tensors.items() if id(tensor) not in local)


def personal_names(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the floating-point tensors that neither travel, as ``names`` do, nor are frozen."""
    others = frozenset(names).union(frozen_names(model))
    return tuple(name for name in floating(model) if name not in others)


def counters(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors that are whole numbers or truth values, which have no average."""
    tensors = model.state_dict(keep_vars=True).items()
    return tuple(name for name, t in tensors if not t.is_floating_point())


def get_state(model: nn.Module, names: Iterable[str]) -> State:
    """Return copies of a model's tensors by name: on the CPU, contiguous, of the model's own dtype.

    Raises:
        ConfigError: The model has no tensor of that name.
    """
    wanted = tuple(names)
    tensors = model.state_dict(keep_vars=True) if wanted else {}
    return {name: _copy(_find(tensors, name)) for name in wanted}


def misfits(model: nn.Module, state: State) -> list[str]:
    """Return the names of tensors that a network or a state alone has, or of other shapes or types."""
    own = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    given = {name: (t.shape, t.dtype) for name, t in state.items()}
    return [name for name in [*own, *(given.keys() - own)] if own.get(name) != given.get(name)]


@torch.no_grad()
def load_state(model: nn.Module, state: State) -> None:
    """Write tensors into a model's own, which keep their memory, device, dtype and memory format.

    Args:
        model: The network.
        state: Tensors by name; names that it leaves out stay as they are.

    Raises:
        ConfigError: A name is unknown to the model or a shape differs; then nothing was written.
    """
    tensors = check_state(model, state)
    for name, value in state.items():
        tensors[name].copy_(value)


def check_state(model: nn.Module, state: State) -> State:
    """Refuse tensors that are not those of a model, and return the model's own.

    Raises:
        ConfigError: A name is unknown to the model or a shape differs.
    """
    tensors: State = model.state_dict(keep_vars=True)
    for name, value in state.items():
        own = _find(tensors, name)
        if own.shape != value.shape:
            raise ConfigError(
                f"the state's {name!r} is {list(value.shape)}, the model's {list(own.shape)}: "
                "they come from different [model] tables"
            )
    return tensors


def digest(state: State) -> str:
    """Return the SHA-256 of names, shapes, types and numbers, hexadecimal; "" of an empty state."""
    found = hashlib.sha256()
    for name, tensor in state.items():
        value = _copy(tensor)
        found.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        found.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest() if state else ""


def size_in_bytes(state: State) -> int:
    """Return the bytes of a state's numbers, as they travel."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def floating(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the floating-point tensors by their first name, in the order of ``state_dict``."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def batch_norm_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of batch norm's scales, shifts and statistics, in the order of ``state_dict``.

    They are found by the modules' type, whatever the network calls them.
    """
    own = {id(t) for layer in _batch_norms(model) for t in (*layer.parameters(), *layer.buffers())}
    return tuple(name for name, tensor in floating(model).items() if id(tensor) in own)


def _batch_norm_statistics(model: nn.Module) -> frozenset[int]:
    """Return the identities of all running means and variances, found by the module's type."""
    layers = _batch_norms(model)
    return frozenset(id(buffer) for layer in layers for buffer in (layer.running_mean, layer.running_var))


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _find(tensors: State, name: str) -> torch.Tensor:
    if name not in tensors:
        raise ConfigError(f"the model has no tensor {name!r}{nearest(name, tensors)}")
    return tensors[name]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
