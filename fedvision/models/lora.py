"""LoRA (Hu et al. 2021, arXiv 2106.09685): frozen layers that learn a change of low rank, W + alpha / r B A.

A linear layer or convolution of fan-in n (input channels times the kernel's pixels) and m outputs gets
``lora_a`` [r, n] and ``lora_b`` [m, r], a convolution's in the shapes of the two convolutions that they are:
[r, n / pixels, kh, kw] and [m, r, 1, 1]. A is drawn from the seed and B is zero, so the network computes at
first what it computed before, bit for bit. ``nn.MultiheadAttention`` gets a pair for its input projection
[3 D, D] and one for its output projection.

The layer keeps its name, its tensors and their names; its class becomes a subclass. Called, it computes
``W x + alpha / r B (A x)``, in which W has no gradient and no product of W's size is formed. Some modules
read the weight of a layer without calling it, as attention does and Swin's, and as encoder layers do in
evaluation alone; they read ``W + alpha / r B A``. So does a layer with a forward pass of its own, and a
grouped convolution, whose product has no form as two convolutions. That way an adapter takes part however
its layer is used.

Left as they are: the head; a layer of which A and B would have no fewer numbers than W, as of most depthwise
convolutions; a layer whose weight is computed (weight norm) or another module's as well.

The package peft (0.21) has adapters as well, but gives a layer's tensors other names, writes the change into
an attention's weights around each call, which clients that are trained together cannot, and does not merge
grouped convolutions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.errors import ConfigError, nearest
from fedvision.models.freezing import thaw
from fedvision.models.mkldnn_layout import SubsampledConv2d

A, B = "lora_a", "lora_b"
"""Names of an adapter's tensors in its layer."""


class Adapter:
    """What a layer's class gets beside its own: the adapter's tensors and the weight with their product."""

    OF: ClassVar[str] = "weight"
    """The tensor that the adapter changes."""
    plain: ClassVar[type[nn.Module]]
    """The layer's class without adapter."""
    form: ClassVar[type[Adapter]]
    """Which of the kinds below."""

    _parameters: dict[str, nn.Parameter]
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float
    """alpha / r."""

    def changed_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return W + alpha / r B A, computed in a type of its own where one is given."""
        weight, a, b = (self._parameters[name].to(dtype) for name in (self.OF, A, B))
        return weight + self.lora_scale * (b.flatten(1) @ a.flatten(1)).view_as(weight)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by the plain class and the kind of adapter, as the class of both is in no module."""
        return _blank, (type(self).plain, type(self).form), self.__getstate__()


class ReadWeight(Adapter):
    """A layer whose own forward pass, and whoever else, reads the changed weight."""

    @property
    def weight(self) -> torch.Tensor:
        """W + alpha / r B A."""
        return self.changed_weight()


class CalledLinear(ReadWeight):
    """A linear layer that adds the adapter's product to its own."""

    bias: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return W x + bias + alpha / r B (A x)."""
        own = F.linear(x, self._parameters["weight"], self.bias)
        return own + F.linear(F.linear(x, self.lora_a), self.lora_scale * self.lora_b)


class CalledConv2d(ReadWeight):
    """A convolution that adds the adapter's two: A with the layer's own kernel and stride, B pointwise."""

    bias: torch.Tensor | None
    _conv_forward: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return W * x + bias + alpha / r B * (A * x)."""
        own: torch.Tensor = self._conv_forward(x, self._parameters["weight"], self.bias)
        return own + F.conv2d(self._conv_forward(x, self.lora_a, None), self.lora_scale * self.lora_b)


class ReadProjection(Adapter):
    """Attention whose forward pass reads the changed projection of its inputs [3 D, D]."""

    OF = "in_proj_weight"

    @property
    def in_proj_weight(self) -> torch.Tensor:
        """W + alpha / r B A."""
        return self.changed_weight()


def add_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    generator: torch.Generator,
    leave: Iterable[nn.Module] = (),
) -> tuple[str, ...]:
    """Give layers of a network adapters, in place.

    Args:
        model: The network, on the CPU.
        rank: r.
        alpha: A product B A counts alpha / r times.
        targets: Patterns of the names of layers, such as ``"backbone.blocks.*"``.
        generator: Draws each A.
        leave: Layers without adapters, as those of the head.

    Returns:
        The names of the layers that have one.

    Raises:
        ConfigError: A pattern matches no layer that can have one.
    """
    layers = dict(_candidates(model, leave))
    small = {name: layer for name, (layer, form) in layers.items() if _is_smaller(_weight(layer, form), rank)}
    chosen = set[str]()
    for pattern in targets:
        if not (matched := {name for name in small if fnmatchcase(name, pattern)}):
            raise ConfigError(f"model.lora.targets: {pattern!r} {_unmatched(pattern, layers, rank)}")
        chosen |= matched
    names = tuple(name for name in small if name in chosen)
    for name in names:
        _adapt(layers[name], rank, alpha, generator)
    return names


def adapters(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Yield the layers that have an adapter, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            yield name, module


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all adapters' tensors."""
    return tuple(f"{name}.{part}" for name, _ in adapters(model) for part in (A, B))


def merge(model: nn.Module) -> nn.Module:
    """Return a plain network that computes the same: each weight is W + alpha / r B A, and nothing is frozen.

    Outputs differ by rounding, as the sum is rounded once in the weight instead of once in each output: by
    about 1e-6 of the largest one in float32.

    Args:
        model: The network; it stays as it is, and is returned itself where it has no adapter.
    """
    if not any(True for _ in adapters(model)):
        return model
    plain = copy.deepcopy(model)
    merge_in_place(plain)
    return plain


@torch.no_grad()
def merge_in_place(model: nn.Module) -> None:
    """Make of a network the plain one that ``merge`` returns; one without adapters stays as it is."""
    found = list(adapters(model))
    for _, layer in found:
        layer._parameters[layer.OF].copy_(layer.changed_weight(torch.float64))
        for name in (A, B, "lora_scale"):
            delattr(layer, name)
        layer.__class__ = type(layer).plain  # type: ignore[assignment]
    if found:
        thaw(model)


_Layer = tuple[nn.Module, type[Adapter]]
"""A layer and the form of its adapter."""


def _candidates(model: nn.Module, leave: Iterable[nn.Module]) -> Iterator[tuple[str, _Layer]]:
    """Yield the layers whose weight is a parameter that they alone have, and the form of their adapter."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    left = set(leave)
    for name, module in model.named_modules():
        form = None if module in left else _form(module)
        if form is not None and owners.get(id(module._parameters.get(form.OF)), 0) == 1:
            yield name, (module, form)


def _form(module: nn.Module) -> type[Adapter] | None:
    """Return how a layer would have its adapter; None where its kind has none."""
    forward = type(module).forward
    if isinstance(module, nn.MultiheadAttention):
        return ReadProjection
    if isinstance(module, nn.Linear):
        return CalledLinear if forward is nn.Linear.forward else ReadWeight
    if isinstance(module, nn.Conv2d):
        known = type(module)._conv_forward in (nn.Conv2d._conv_forward, SubsampledConv2d._conv_forward)
        called = forward is nn.Conv2d.forward and known and module.groups == 1
        return CalledConv2d if called else ReadWeight
    return None


def _weight(layer: nn.Module, form: type[Adapter]) -> torch.Tensor:
    found = layer._parameters[form.OF]
    assert found is not None
    return found


def _is_smaller(weight: torch.Tensor, rank: int) -> bool:
    """Return whether A and B have fewer numbers than a weight [m, n]."""
    return rank * (len(weight) + weight[0].numel()) < weight.numel()


def _adapt(one: _Layer, rank: int, alpha: float, generator: torch.Generator) -> None:
    layer, form = one
    weight = _weight(layer, form)
    outputs, *inputs = weight.shape
    a = nn.Parameter(weight.new_empty(rank, *inputs))
    # Uniform within 1 / sqrt(n), as the authors' own code draws it (loralib).
    nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
    layer.register_parameter(A, a)
    layer.register_parameter(B, nn.Parameter(weight.new_zeros(outputs, rank, *(1 for _ in inputs[1:]))))
    vars(layer)["lora_scale"] = alpha / rank
    layer.__class__ = _adapted(type(layer), form)


_classes: dict[tuple[type[nn.Module], type[Adapter]], type[nn.Module]] = {}


def _adapted(plain: type[nn.Module], form: type[Adapter]) -> type[nn.Module]:
    """Return the one class of a layer's kind with an adapter of this form."""
    key, name = (plain, form), f"{plain.__name__}WithLora"
    if key not in _classes:
        facts = {"plain": plain, "form": form, "__module__": plain.__module__}
        _classes[key] = type(name, (form, plain), facts)
    return _classes[key]


def _blank(plain: type[nn.Module], form: type[Adapter]) -> nn.Module:
    """Return a layer without content, which unpickling fills."""
    kind = _adapted(plain, form)
    return kind.__new__(kind)


def _unmatched(pattern: str, layers: dict[str, _Layer], rank: int) -> str:
    if any(fnmatchcase(name, pattern) for name in layers):
        return f"matches only layers that are smaller than an adapter of rank {rank}; lower model.lora.rank"
    return f"matches no linear layer, convolution or attention before the head{nearest(pattern, layers)}"
