"""The memory layout of oneDNN, in which a stage of convolutions and pooling can stay from end to end.

torch's convolutions on a CPU are oneDNN's, its max-pooling is not: that spends a tenth of a small network's
step on indices and on gradients that it first fills with zeros. A tensor in oneDNN's own layout (channels in
blocks of a vector's width; ``Tensor.to_mkldnn``) stays inside the library through convolution, pooling and
ReLU, forward and backward. Measured on 28x28 images with AVX-512: a step over 64 images 0.88 of the time of
channels_last, over 32 images 0.93, over 10 images the same and over 4 images 1.08, as each layer costs a few
microseconds more; a forward pass without gradients 0.82. With AVX2 a step over 32 images took 1.08 times as
long. So tensors stay as they are where there is little work or no AVX-512. So they do on a GPU, under
autocast and under ``torch.func``, which do not know the layout: it is used only where a loop selects it.

oneDNN's gradient of a 1x1 convolution with a stride over fewer than eight channels in channels_last writes
past its memory on processors with AVX2 alone (torch 2.14 with oneDNN's ``jit_1x1:avx2``; stride 1, eight
channels or more, contiguous tensors are right). ``avoid_narrow_strides`` computes the same otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn
from torch.nn import functional as F

LEAST = 10 * 28 * 28
"""Pixels of a batch from which on the layout gains."""
_allowed: ContextVar[bool] = ContextVar("blocked layout", default=False)


@contextmanager
def may_block() -> Iterator[None]:
    """Let the models that are called inside use the layout, where this processor gains by it."""
    token = _allowed.set(gains())
    try:
        yield
    finally:
        _allowed.reset(token)


def gains() -> bool:
    """Return whether the layout is quicker on this machine's processor."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512"


def blocked(x: torch.Tensor) -> torch.Tensor:
    """Return images or feature maps [B, channels, h, w] in oneDNN's layout, or as they are.

    Convolution, ReLU and max-pooling (its stride given) take such a tensor, forward and backward; ``plain``
    ends the stage. The values are the same but for the order of float32 sums.
    """
    if torch.compiler.is_compiling():  # it chooses layouts itself
        return x
    usable = _allowed.get() and x.dtype == torch.float32 and x.device.type == "cpu"
    return x.to_mkldnn() if usable and x.shape[0] * x.shape[2] * x.shape[3] >= LEAST else x


def plain(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor as every other layer takes it."""
    return x.to_dense() if x.is_mkldnn else x


class SubsampledConv2d(nn.Conv2d):
    """A 1x1 convolution with a stride, computed as one without on the pixels that the stride leaves."""

    def _conv_forward(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return what ``nn.Conv2d`` returns."""
        down, across = self.stride
        return F.conv2d(input[..., ::down, ::across], weight, bias, groups=self.groups)


def avoid_narrow_strides(model: nn.Module) -> None:
    """Make those convolutions of a model safe, in place, whose gradient may overrun its memory.

    Names and values of tensors stay. It is done on every processor, so that models are equal.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_narrow(module):
            module.__class__ = SubsampledConv2d


def _is_narrow(layer: nn.Conv2d) -> bool:
    pointwise = layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid")
    return pointwise and max(layer.stride) > 1 and layer.in_channels // layer.groups < 8
