"""Activation checkpoints (Chen et al. 2016, arXiv 1604.06174): less memory for a second forward pass.

A block's activations are not kept for the backward pass, but computed anew from the block's input when it
comes to the block. Gradients have the same bits: dropout draws what it drew before, and buffers are as they
were, so that batch norm counts a batch once. The blocks are a backbone's units that have layers of their own,
such as a Transformer's blocks; a layer alone keeps little but its input.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError
from fedvision.models.base import ImageModel
from fedvision.models.taps import is_tapped
from fedvision.models.units import units


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network, of its backbone where it has one, in their order.

    A block inside which a pass over its network ends, or an output is noted, is left as it is.
    """
    found = units(model.backbone if isinstance(model, ImageModel) else model)
    return [unit for _, unit in found if any(True for _ in unit.children()) and not _ends_inside(unit)]


def _ends_inside(unit: nn.Module) -> bool:
    return any(is_tapped(module) for module in unit.modules() if module is not unit)


def check_blocks(config: ExperimentConfig, model: nn.Module) -> None:
    """Refuse to compute activations anew in a network of fewer than two blocks, where it saves nothing.

    Raises:
        ConfigError: It has fewer.
    """
    if config.training.checkpoint_activations and len(blocks(model)) < 2:
        raise ConfigError(
            f"training.checkpoint_activations: [model] use = {config.model.use!r} has no two blocks of "
            "several layers, of which to keep the inputs alone; set it to false"
        )


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Let the blocks of a network keep their inputs alone for a backward pass, within the block.

    Args:
        model: The network; it is in place, and its tensors and their names stay.
    """
    changed = [(block, type(block)) for block in blocks(model)]
    for block, own in changed:
        block.__class__ = type(own.__name__, (_Recomputed, own), {"__module__": own.__module__})
    try:
        yield
    finally:
        for block, own in changed:
            block.__class__ = own


class _Recomputed:
    """A block whose forward pass is done again in the backward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block returns."""
        own = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return own(*args, **kwargs)
        # The second pass must run in the same settings, in whatever thread the backward pass runs.
        settings = contextvars.copy_context()
        return checkpoint(
            lambda *a, **k: settings.run(own, *a, **k),
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _buffers_as_now(self)),  # type: ignore[arg-type]
            **kwargs,
        )


def _buffers_as_now(block: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which a block has the buffers that it has now; then those that it had before it."""
    now = [(part, {name: b.clone() for name, b in _buffers(part).items()}) for part in block.modules()]

    @contextmanager
    def within() -> Iterator[None]:
        later = [(part, _buffers(part)) for part, _ in now]
        for part, buffers in now:
            part._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
        try:
            yield
        finally:
            for part, buffers in later:
                part._buffers.update(buffers)

    return within()


def _buffers(part: nn.Module) -> dict[str, torch.Tensor]:
    return dict(part.named_buffers(recurse=False, remove_duplicate=False))
