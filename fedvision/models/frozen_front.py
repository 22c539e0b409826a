"""A backbone cut in two where training begins: a frozen front, and the rest that reads what the front makes.

``model.train = "last:2"`` leaves all units but two as they are. What they make of an image is the same in
every round, as the features of a wholly frozen backbone are, so the rest can train on it. The cut is found in
a trial pass: all layers that run before the first one with a trained tensor are the front. In the rest, the
front's layers pass on what they are given. That is right where each layer reads the output of the last one
alone; a second pass compares, so a network with other paths past the cut is not cut. A backbone of which the
first part makes several maps, as a detector's does, names that part (``fork``) and is cut behind it.

Shape letters: B batch, D numbers that the front makes of an image, V views.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedvision.models.base import ImageModel
from fedvision.models.freezing import frozen_names
from fedvision.models.meta import filled
from fedvision.models.parts import Part
from fedvision.models.state import floating
from fedvision.models.units import units

_IMAGES = 2
"""Images of the trial pass: the rest must tell them apart."""
_MOST = 8
"""Times the numbers of an image that its features may have."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The two parts of a backbone; they share its tensors, and those of the rest keep their names."""

    front: nn.Module
    """Images [B, channels, H, W] -> [B, D], all of its tensors frozen."""
    rest: nn.Module
    """What the front made of views of images, [B, D, V, 1] -> features of the first one."""
    numbers: int
    """D; 0 where the front is the whole backbone, which was not run."""


class FirstView(nn.Module):
    """Numbers of views [B, D, V, 1] -> those of the image itself or, in training, of the view drawn.

    Args:
        shape: Of what is returned for an image, of D numbers.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, *shape]."""
        return torch.unflatten(x[:, :, 0, 0], 1, self.shape)


class Maps(nn.Module):
    """Numbers of views [B, D, V, 1] -> the maps [B, *shape] of which they are, those of the first view.

    Args:
        shapes: Of each map of an image, D numbers together.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = tuple(shapes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps."""
        parts = x[:, :, 0, 0].split([math.prod(shape) for shape in self.shapes], 1)  # type: ignore[no-untyped-call]
        return tuple(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True))


class _Flat(nn.Module):
    """A part that makes maps of images, whose numbers are joined: [B, D]."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the numbers of all maps."""
        return torch.cat([one.flatten(1) for one in self.part(images)], 1)


def cut(model: nn.Module, shape: tuple[int, int, int]) -> Cut | None:
    """Cut the backbone of a network where its training begins.

    Args:
        model: The network; it is not run and stays as it is.
        shape: (channels, H, W) of its images.

    Returns:
        The parts, or None: the network has no backbone and head, nothing is frozen before the first trained
        layer, the front makes more numbers of an image than it has, or its layers are no chain.
    """
    if not isinstance(model, ImageModel):
        return None
    tensors = model.state_dict(keep_vars=True)
    frozen = {id(tensors[name]) for name in frozen_names(model)}
    own = floating(model.backbone)
    if not any(id(tensor) in frozen for tensor in own.values()):
        return None
    if fork := getattr(model.backbone, "fork", ""):
        return _at_fork(model.backbone, fork, frozen, shape)
    if all(id(tensor) in frozen for tensor in own.values()):
        return Cut(front=model.backbone, rest=FirstView((-1,)), numbers=0)
    trained = {name for name, tensor in own.items() if id(tensor) not in frozen}
    begun = next(iter(dict(units(model.backbone))), "")
    if any(name.startswith(f"{begun}.") for name in trained):
        return None
    trial = _trial(model.backbone, trained)
    with torch.no_grad():
        images = torch.randn(_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
        found = _chain(trial, images, trained)
        if found is None or found.seen[0].numel() > _MOST * math.prod(shape):
            return None
        parts = _parts(model.backbone, found, trained)
        if not _agree(_parts(trial, found, trained), trial, images):
            return None
    return parts


def _at_fork(backbone: nn.Module, fork: str, frozen: Set[int], shape: tuple[int, int, int]) -> Cut | None:
    """Cut a backbone behind its first part; None where some of that is trained, or it makes too much."""
    part = backbone.get_submodule(fork)
    if any(id(tensor) not in frozen for tensor in floating(part).values()):
        return None
    trial = copy.deepcopy(filled(part)).cpu().float().eval()
    with torch.no_grad():
        shapes = [tuple(one.shape[1:]) for one in trial(torch.zeros(1, *shape))]
    numbers = sum(map(math.prod, shapes))
    if numbers > _MOST * math.prod(shape):
        return None
    return Cut(front=_Flat(part), rest=_with(backbone, {fork: Maps(shapes)}), numbers=numbers)


@dataclass(frozen=True, kw_only=True)
class _Chain:
    front: tuple[str, ...]
    """Names of the layers before the first one that is trained, as they run."""
    first: str
    """Name of that layer."""
    seen: torch.Tensor
    """What it was given."""


class _Reached(Exception):
    """The forward pass has come to the cut, with this."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value


class _Stop(nn.Module):
    def forward(self, x: torch.Tensor, *others: None) -> torch.Tensor:
        raise _Reached(x)


class _Front(nn.Module):
    """A backbone that ends at a ``_Stop``."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, D]."""
        try:
            self.backbone(images)
        except _Reached as reached:
            return reached.value.flatten(1)
        raise AssertionError("the cut was not reached")


def _trial(backbone: nn.Module, trained: Iterable[str]) -> nn.Module:
    """Return a copy on the CPU that draws nothing and has numbers in place of those that training makes."""
    trial = copy.deepcopy(filled(backbone)).cpu().float().eval()
    for layer in trial.modules():
        if isinstance(layer, _BatchNorm):  # else a deep network may make the same of all images
            layer.train()
    tensors, parameters = floating(trial), dict(trial.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for name in sorted(trained):
        tensor = tensors[name].data
        if name in parameters and tensor.dim() > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
        else:
            tensor.uniform_(0.5, 1.5, generator=generator)
    return trial


def _layers(backbone: nn.Module, trained: Iterable[str]) -> dict[str, nn.Module]:
    """Return what a backbone is cut between, by name: units, and the layers without tensors beside them.

    Frozen parts stand for all of their units, and so do modules that have a trained tensor of their own, such
    as a class token.
    """
    found = dict(units(backbone))
    whole: dict[str, nn.Module] = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, Part) and not any(one.startswith(f"{name}.") for one in trained)
    }
    for one in trained:
        owner = one.rpartition(".")[0]
        if owner and not any(one.startswith(f"{unit}.") for unit in found):
            whole[owner] = backbone.get_submodule(owner)
    for name, module in whole.items():
        found = {other: unit for other, unit in found.items() if not other.startswith(f"{name}.")}
        found[name] = module
    inside = {id(part) for unit in found.values() for part in unit.modules()}
    beside = {
        name: module
        for name, module in backbone.named_modules()
        if id(module) not in inside and not any(True for _ in module.children()) and name
    }
    return found | {name: layer for name, layer in beside.items() if not floating(layer)}


def _chain(trial: nn.Module, images: torch.Tensor, trained: set[str]) -> _Chain | None:
    """Return what runs before training begins; None where nothing does or it is no chain of single inputs."""
    layers = _layers(trial, trained)
    inside = {name for unit in layers for name in trained if name.startswith(f"{unit}.")}
    if inside != trained:
        return None
    order: list[str] = []
    given: dict[str, torch.Tensor | None] = {}

    def before(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        order.append(name)
        alone = not kwargs and all(other is None for other in args[1:])
        one = alone and bool(args) and isinstance(args[0], torch.Tensor)
        given[name] = args[0].clone() if one else None

    hooks = [
        layer.register_forward_pre_hook(partial(before, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        trial(images)
    finally:
        for hook in hooks:
            hook.remove()
    begun = next((i for i, name in enumerate(order) if any(t.startswith(f"{name}.") for t in trained)), 0)
    if not begun:
        return None
    seen = given[order[begun]]
    if seen is None or len(seen) != len(images) or set(order[:begun]) & set(order[begun:]):
        return None
    return _Chain(front=tuple(dict.fromkeys(order[:begun])), first=order[begun], seen=seen)


def _parts(backbone: nn.Module, chain: _Chain, trained: Iterable[str]) -> Cut:
    enter: nn.Module = FirstView(tuple(chain.seen.shape[1:]))
    passed = dict.fromkeys(chain.front[1:], nn.Identity())
    behind = [name for name in _layers(backbone, trained) if name not in (*chain.front, chain.first)]
    return Cut(
        front=_Front(_with(backbone, {chain.first: _Stop(), **dict.fromkeys(behind, nn.Identity())})),
        rest=_with(backbone, {chain.front[0]: enter, **passed}),
        numbers=chain.seen[0].numel(),
    )


def _with(module: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """Return a module with some of its parts replaced by name; all other parts and tensors are the same."""
    twin = copy.copy(module)
    parts = vars(twin)["_modules"] = dict(vars(module)["_modules"])
    for key in {name.partition(".")[0] for name in replaced}:
        below = {
            name.partition(".")[2]: part for name, part in replaced.items() if name.partition(".")[0] == key
        }
        parts[key] = below[""] if "" in below else _with(parts[key], below)
    return twin


def _agree(parts: Cut, trial: nn.Module, images: torch.Tensor) -> bool:
    """Return whether the two parts make what the whole makes, and tell images apart."""
    whole = trial(images)
    try:
        found = parts.rest(parts.front(images)[:, :, None, None])
    except Exception:  # whatever a network raises that is given what it does not expect
        return False
    if not isinstance(found, torch.Tensor) or found.shape != whole.shape:
        return False
    scale = whole.abs().max()
    apart = (whole[0] - whole[1]).abs().max()
    return bool(apart > 0.01 * scale and (found - whole).abs().max() <= 1e-3 * scale)
