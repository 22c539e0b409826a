"""Tensors of a network that nobody trains: they have no gradient, and layers of them alone do not train.

A batch norm whose tensors are all frozen normalises with the statistics that it has, and dropout inside a
frozen part or between two frozen layers drops nothing, as in evaluation. The network itself holds which of
its tensors these are, so a copy of it, or one built again from the experiment, treats them alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

_NAMES, _MARK = "_frozen_tensors", "_holds_frozen_tensors_alone"


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Freeze tensors of a network, in place.

    Args:
        model: The network; ``training_mode`` is to switch it to training from then on.
        names: Of floating-point tensors, as in ``state_dict``.
    """
    if not names:
        return
    tensors = model.state_dict(keep_vars=True)
    frozen = {id(tensors[name]) for name in names}
    for parameter in model.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)
    for module in model.modules():
        own = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
        setattr(module, _MARK, bool(own) and all(id(tensor) in frozen for tensor in own))
    for module in _between_frozen(model):
        setattr(module, _MARK, True)
    setattr(model, _NAMES, tuple(names))


def _between_frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers without tensors, such as dropout, that lie before a frozen layer and after no other.

    In the order in which layers were registered, which is that of the forward pass as a rule.
    """
    waiting: list[nn.Module] = []
    behind = True  # whether the last layer with tensors is frozen, or there was none
    for layer in (module for module in model.modules() if not any(True for _ in module.children())):
        if not any(t.is_floating_point() for t in (*layer.parameters(), *layer.buffers())):
            waiting.append(layer)
            continue
        ahead = getattr(layer, _MARK)
        if behind and ahead:
            yield from waiting
        waiting, behind = [], ahead


def thaw(model: nn.Module) -> None:
    """Undo ``freeze``, in place."""
    names = frozenset(frozen_names(model))
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
    for module in model.modules():
        vars(module).pop(_MARK, None)
    vars(model).pop(_NAMES, None)


def frozen_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors that ``freeze`` froze, in its order."""
    names: tuple[str, ...] = getattr(model, _NAMES, ())
    return names


def training_mode(model: nn.Module, training: bool = True) -> None:
    """Switch a network to training or evaluation; frozen parts of it stay in evaluation."""
    model.train(training)
    for module in model.modules() if training and frozen_names(model) else ():
        if getattr(module, _MARK, False):
            module.eval()


def frozen_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the frozen tensors by name, as they are."""
    tensors = model.state_dict()
    return {name: tensors[name] for name in frozen_names(model)}


@contextmanager
def trained_alone(model: nn.Module, names: frozenset[str] | None) -> Iterator[list[nn.Parameter]]:
    """Yield those of a network's trained parameters that are named, the only ones with gradients until then.

    Args:
        model: The network.
        names: Of parameters; None names all.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fixed = [] if names is None else [p for name, p in trained.items() if name not in names]
    for parameter in fixed:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield [p for p in trained.values() if p.requires_grad]
    finally:
        for parameter in fixed:
            parameter.requires_grad_(True)
