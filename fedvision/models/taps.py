"""Outputs of layers inside a network: which of them are tokens, and a network that stops at the last one.

A tapped layer keeps a hook that notes its output for whoever called the network by ``outputs``; the hook of
the last one ends the pass, so that nothing behind it is computed. Hooks and network hold no tensors between
calls: they can be copied, pickled, called by several threads and transformed by ``torch.func``.

Shape letters: B batch, F features of a token, T tokens; a map is [B, F, h, w], or [B, h, w, F] as some
networks have it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from fedvision.errors import PluginError, nearest
from fedvision.models.tensor_checks import put_back
from fedvision.models.tokens import places

_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_noted: ContextVar[dict[str, torch.Tensor] | None] = ContextVar("outputs of tapped layers", default=None)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of a network and what it returns."""

    name: str
    """In the network; empty is the network itself."""
    channels: int
    """F."""
    grid: tuple[int, int]
    """(h, w) of a map; (T, 1) of tokens."""
    channels_last: bool = False
    """Whether the map is [B, h, w, F]."""

    def arranged(self, output: torch.Tensor) -> torch.Tensor:
        """Return an output as a map [B, F, h, w], or as tokens [B, T, F]."""
        return output.permute(0, 3, 1, 2) if self.channels_last else output


class _LastReached(Exception):
    """Ends a pass."""


def tap(network: nn.Module, layers: Sequence[Layer]) -> None:
    """Let layers of a network note their outputs, in place.

    Args:
        network: It then works by ``outputs`` alone.
        layers: In the order of the pass, which ends with the last one.
    """
    for layer in layers:
        module = network.get_submodule(layer.name)
        module.register_forward_hook(partial(_note, layer.name, layer is layers[-1]))


def outputs(network: nn.Module, layers: Sequence[Layer], images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the outputs of a network's tapped layers, each a map [B, F, h, w] or tokens [B, T, F].

    ``torch.compile`` cannot follow a pass that ends inside, so it compiles what is around.
    """
    run = torch.compiler.disable(_outputs) if torch.compiler.is_compiling() else _outputs  # type: ignore[no-untyped-call]
    found: tuple[torch.Tensor, ...] = run(network, layers, images)
    return found


def _outputs(network: nn.Module, layers: Sequence[Layer], images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    noted: dict[str, torch.Tensor] = {}
    token = _noted.set(noted)
    try:
        network(images)
    except _LastReached:
        pass
    finally:
        _noted.reset(token)
    return tuple(layer.arranged(noted[layer.name]) for layer in layers)


def _note(name: str, last: bool, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    noted = _noted.get()
    if noted is None:  # somebody calls the network itself
        return
    noted[name] = _tensor(output)
    # torch.export keeps a stack of layers that an exception would leave as it is; it drops what nobody reads.
    if last and not torch.compiler.is_exporting():
        raise _LastReached


def is_tapped(module: nn.Module) -> bool:
    """Return whether a layer notes its output."""
    hooks = module._forward_hooks.values()
    return any(isinstance(hook, partial) and hook.func is _note for hook in hooks)


def find(
    network: nn.Module,
    images: torch.Tensor,
    names: Sequence[str],
    key: str,
    *,
    calls: int = 1,
    least: int = 1,
) -> tuple[Layer, ...]:
    """Find layers of a network whose outputs are tokens.

    Args:
        network: Images -> anything.
        images: A few images [B, channels, H, W] to find out with.
        names: Of the layers, in the order of the pass; an empty one is the last layer that returns a feature
            map of more than one place, or more than one token.
        key: The part's dotted key, for errors.
        calls: How often a pass calls a layer: twice where features are averaged with the mirror image's.
        least: Places a side that a layer has whose name is empty.

    Raises:
        PluginError: A layer is unknown, is not called so often, returns something else, or follows the
            next one.
    """
    trace = _Trace(network, images, calls, least)
    found = tuple(trace.layer(name, key) if name else trace.last(key) for name in names)
    for before, after in itertools.pairwise(found):
        if trace.order.index(before.name) >= trace.order.index(after.name):
            raise PluginError(
                f"{key}: the layer {before.name!r} does not come before {after.name!r}, the one whose output "
                "are the tokens; name an earlier one"
            )
    return found


def scales(network: nn.Module, images: torch.Tensor, key: str, *, least: float) -> tuple[Layer, ...]:
    """Find the last feature map of each size that a network makes, the finest first.

    Args:
        network: Images -> anything.
        images: A few images [B, channels, H, W] to find out with.
        key: The part's dotted key, for errors.
        least: Pixels a side that a place of the finest map stands for; where no map is as coarse, the
            coarsest one is returned.

    Raises:
        PluginError: It makes no feature map.
    """
    return _Trace(network, images).scales(key, least)


@dataclass
class _Trace:
    """What happens in a pass over a network's layers, in evaluation."""

    network: nn.Module
    images: torch.Tensor
    usual: int = 1
    """How often a usable layer is called."""
    least: int = 1
    """Places a side that the last layer has."""
    order: list[str] = field(default_factory=list)
    """Names of the layers in the order in which they returned."""
    calls: Counter[str] = field(default_factory=Counter)
    found: dict[str, torch.Tensor | None] = field(default_factory=dict)
    """What each layer returned last; None where that was no tensor."""

    def __post_init__(self) -> None:
        named = dict(self.network.named_modules())
        handles = [module.register_forward_hook(partial(self._note, name)) for name, module in named.items()]
        try:
            with put_back(self.network), torch.no_grad():
                self.network.eval()(self.images)
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, layer: nn.Module, args: Any, output: Any) -> None:
        self.order.append(name)
        self.calls[name] += 1
        found = _tensor(output)
        self.found[name] = found if isinstance(found, torch.Tensor) else None

    def form(self, name: str) -> Layer | None:
        """Return what a layer returns; None where that is neither a map nor tokens."""
        output, batch = self.found.get(name), len(self.images)
        if output is None or not output.is_floating_point() or output.ndim not in (3, 4):
            return None
        if len(output) != batch or 0 in output.shape:
            return None
        if output.ndim == 3:
            return Layer(name=name, channels=output.shape[2], grid=(output.shape[1], 1))
        down, across = places(output.shape, self.images.shape[2:])
        return Layer(
            name=name,
            channels=output.shape[1 if down == 2 else 3],
            grid=(output.shape[down], output.shape[across]),
            channels_last=down == 1,
        )

    def last(self, key: str) -> Layer:
        """Return the last layer whose output are several tokens, and the outermost where several share it.

        Layers inside one that returns something else, such as a pooling head, are none, and neither is
        pooling.
        """
        for inside in (False, True):
            for name in reversed(self.order):
                if (layer := self._candidate(name)) and (inside or self._passes_on(name)):
                    return layer
        height, width = self.images.shape[2:]
        raise PluginError(
            f"{key}: no layer of this network returns several tokens for images of {height} x {width}; take "
            "another network or larger images (transforms.size)"
        )

    def scales(self, key: str, least: float) -> tuple[Layer, ...]:
        """Return the last and outermost layer that makes a map of each size; see the function ``scales``."""
        found: dict[tuple[int, int], Layer] = {}
        for name in reversed(self.order):
            layer = self._candidate(name)
            if layer and layer.grid not in found and self._is_map(name) and self._passes_on(name):
                found[layer.grid] = layer
        if not found:
            raise PluginError(
                f"{key}: no layer of this network makes a feature map of several places; take another one, "
                "such as 'resnet8'"
            )
        in_order = sorted(found.values(), key=lambda layer: self.order.index(layer.name))
        # A network that comes back to a finer map, as a decoder does, is read where it ends.
        falling = [
            layer
            for place, layer in enumerate(in_order)
            if all(layer.grid >= later.grid for later in in_order[place + 1 :])
        ]
        height = self.images.shape[2]
        coarse = [layer for layer in falling if height / layer.grid[0] > least - 0.5]
        return tuple(coarse or falling[-1:])

    def _is_map(self, name: str) -> bool:
        output = self.found.get(name)
        return output is not None and output.ndim == 4

    def _candidate(self, name: str) -> Layer | None:
        layer = self.form(name)
        if layer is None or not _several(layer) or min(layer.grid) < self.least:
            return None
        usable = self.calls[name] == self.usual
        return layer if usable and not isinstance(self.network.get_submodule(name), _POOLS) else None

    def _passes_on(self, name: str) -> bool:
        """Return whether all layers around one, but the network itself, return several tokens."""
        steps = name.split(".")
        around = (".".join(steps[:count]) for count in range(1, len(steps)))
        return all(_several(self.form(outer)) for outer in around if self.calls[outer])

    def layer(self, name: str, key: str) -> Layer:
        """Return a layer by its name."""
        where = f"{key}: the layer {name!r}"
        names = [known for known, _ in self.network.named_modules() if known]
        if name not in names:
            raise PluginError(f"{key}: the network has no layer {name!r}{nearest(name, names)}")
        if self.calls[name] != self.usual:
            times = "is not called" if not self.calls[name] else f"is called {self.calls[name]} times"
            raise PluginError(f"{where} {times} in a pass; name one that is called once")
        if (found := self.form(name)) is None:
            raise PluginError(
                f"{where} returns neither a feature map [B, F, h, w] nor tokens [B, T, F]; name another one"
            )
        return found


def _several(layer: Layer | None) -> bool:
    return layer is not None and layer.grid != (1, 1)


def _tensor(output: Any) -> Any:
    """Return the first of several outputs: recurrent layers and attention return theirs with others."""
    return output[0] if isinstance(output, tuple) and output else output


def drop_unused(network: nn.Module, layers: Sequence[Layer], images: torch.Tensor) -> tuple[str, ...]:
    """Replace what lies behind a network's last tap, in place: nobody is to send or train its tensors.

    Returns:
        The prefixes of the tensors that are gone.
    """
    started = set[str]()
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: started.add(name))
        for name, module in network.named_modules()
    ]
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    reached: Sequence[torch.Tensor | None] = ()
    try:
        with put_back(network), torch.enable_grad():
            total = torch.stack([found.sum() for found in outputs(network.eval(), layers, images)]).sum()
            if total.requires_grad:
                reached = torch.autograd.grad(total, parameters, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    used = {id(p) for p, gradient in zip(parameters, reached, strict=False) if gradient is not None}
    # Of a tensor without gradient nobody knows whether it is read.
    used |= {id(p) for p in network.parameters() if not p.requires_grad}
    gone = tuple(_unused("", network, used, started))
    for name in gone:
        network.set_submodule(name, nn.Identity())
    return tuple(f"{name}." for name in gone)


def _unused(place: str, module: nn.Module, used: set[int], started: set[str]) -> Iterator[str]:
    """Yield the outermost modules that were not called and of whose parameters none was used."""
    for key, child in module.named_children():
        inner = f"{place}.{key}" if place else key
        tensors = list(child.parameters())
        called = any(f"{name}.".startswith(f"{inner}.") for name in started)
        if tensors and not called and not any(id(tensor) in used for tensor in tensors):
            yield inner
        else:
            yield from _unused(inner, child, used, started)
