"""``training.compile``: kernels made for a network by ``torch.compile``, tried before the first round."""

from __future__ import annotations

import torch
from torch import nn

from fedvision import seeding
from fedvision.errors import ConfigError, first_line
from fedvision.inputs import Batch
from fedvision.models.freezing import training_mode
from fedvision.models.tensor_checks import put_back
from fedvision.training.forward import ForwardSettings

BACKEND = "inductor"
"""What makes the kernels: torch's own, with a C++ compiler on a CPU and Triton on a GPU."""


def compile_model(model: nn.Module, images: Batch, settings: ForwardSettings) -> None:
    """Let a network be compiled when it is called, in place, and try a forward and a backward pass.

    Its tensors, their names and what a copy of it is stay as they are. A batch of another size, evaluation
    and other changes of what the network computes are compiled when they come.

    Args:
        model: The network, on its device.
        images: float [B, channels, H, W] on the device; no random stream moves, and no buffer changes.
        settings: Precision of the forward pass.

    Raises:
        ConfigError: It cannot be compiled here.
    """
    training_mode(model)
    model.compile(backend=BACKEND)
    try:
        with seeding.torch_global(0, "trial"), put_back(model), settings.one_model():
            outputs = model(images)
            if isinstance(outputs, torch.Tensor):
                outputs.float().sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ConfigError(
            f"training.compile: torch.compile fails on this network here ({first_line(error)}); set it to "
            "false, or install what it lacks"
        ) from error
    finally:
        model.zero_grad(set_to_none=True)
