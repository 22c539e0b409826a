"""Features of several layers: means over places of what further layers return, beside a backbone's own.

The last layer of a pretrained backbone knows the classes of its training; earlier ones keep colours and
textures that other images may differ in. A backbone keeps its class and the names of its tensors: hooks
collect what the layers return while it is called.

Nothing is scaled: closed-form heads standardise features, and a head that is trained by gradient steps learns
little from a layer whose numbers are small beside another's.

Shape letters: B batch, D features, T tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from fedvision.errors import ConfigError, nearest
from fedvision.formatting import listed
from fedvision.inputs import Batch
from fedvision.models.gray import Gray
from fedvision.models.mkldnn_layout import plain
from fedvision.models.tokens import places

_SHOWN = 12
"""Names of layers in an error."""


def add_feature_layers(backbone: nn.Module, names: Sequence[str], images: Batch) -> None:
    """Let a backbone return, behind its own features, the means over places of some layers' outputs.

    Outputs are feature maps [B, channels, h, w] or [B, h, w, channels], whichever gives h and w the image's
    proportions, the first where both do; tokens [B, T, D]; or features [B, D]. Of a layer that is called
    several times the mean over the calls counts.

    Args:
        backbone: Images -> features [B, D]; changed in place.
        names: Of its layers, in the order in which their features follow.
        images: Two images [2, channels, H, W] to find out with.

    Raises:
        ConfigError: There is no such layer, it is named twice or not called, or it returns something else.
    """
    inner = backbone.network if isinstance(backbone, Gray) else backbone
    layers = {name: layer for name, layer in inner.named_modules() if name}
    for place, name in enumerate(names):
        if name not in layers:
            raise ConfigError(
                f"model.feature_layers: the backbone has no layer {name!r}{_some(name, layers)}"
            )
        if name in names[:place]:
            raise ConfigError(f"model.feature_layers: {name!r} is named twice; leave one out")
    shapes = _shapes({name: layers[name] for name in names}, backbone, images)
    collected = _Collected({name: _places(name, shapes.get(name), images) for name in names})
    backbone.register_forward_pre_hook(collected.begin)
    for name in names:
        # Before a hook that ends a pass there (models.taps).
        layers[name].register_forward_hook(partial(collected.add, name), prepend=True)
    backbone.register_forward_hook(collected.join)


class _Collected:
    """What layers returned since a backbone's call began, for each thread that calls it.

    Args:
        places: The dimensions of each layer's output that are places.
    """

    def __init__(self, places: Mapping[str, tuple[int, ...]]) -> None:
        self._places = dict(places)
        self._found = threading.local()

    def __getstate__(self) -> dict[str, tuple[int, ...]]:
        return self._places

    def __setstate__(self, state: dict[str, tuple[int, ...]]) -> None:
        self.__init__(state)  # type: ignore[misc]

    def begin(self, backbone: nn.Module, args: tuple[Any, ...]) -> None:
        """Forget what an earlier call left: a backward pass may have called layers anew."""
        self._found.means = {name: [] for name in self._places}

    def add(self, name: str, layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        """Note the mean over places of what a layer returned."""
        over, output = self._places[name], plain(output)
        self._found.means[name].append(output.mean(over) if over else output)

    def join(self, backbone: nn.Module, args: tuple[Any, ...], features: torch.Tensor) -> torch.Tensor:
        """Return the features with the layers' behind them, [B, D]."""
        means = [sum(calls[1:], calls[0]) / len(calls) for calls in self._found.means.values()]
        self._found.means = {}
        return torch.cat([features, *(mean.to(features.dtype) for mean in means)], dim=1)


@torch.no_grad()
def _shapes(layers: Mapping[str, nn.Module], backbone: nn.Module, images: Batch) -> dict[str, Any]:
    """Return the shape of what each layer returns, or the name of its type where that is no tensor."""
    found: dict[str, Any] = {}

    def note(name: str, layer: nn.Module, args: Any, output: Any) -> None:
        found[name] = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__

    handles = [
        layer.register_forward_hook(partial(note, name), prepend=True) for name, layer in layers.items()
    ]
    training = {module: module.training for module in backbone.modules()}
    try:
        backbone.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, before in training.items():
            module.training = before
    return found


def _places(name: str, shape: Any, images: Batch) -> tuple[int, ...]:
    """Return the dimensions of an output that are places.

    Raises:
        ConfigError: It has none that are known.
    """
    where = f"model.feature_layers: the layer {name!r}"
    if shape is None:
        raise ConfigError(f"{where} is not called by the backbone; name one that is")
    if isinstance(shape, str):
        raise ConfigError(
            f"{where} returns a {shape}, not a tensor; name one of its parts, or the next layer"
        )
    if shape[0] != len(images) or not 2 <= len(shape) <= 4:
        raise ConfigError(
            f"{where} makes {list(shape)} of {len(images)} images, and not feature maps, tokens or features; "
            "name another one"
        )
    if len(shape) == 4:
        return places(shape, images.shape[2:])
    return tuple(range(1, len(shape) - 1))


def _some(name: str, layers: Mapping[str, nn.Module]) -> str:
    """Return the nearest name, or some of them from the backbone's beginning to its end."""
    hint = nearest(name, layers)
    if hint.startswith("; did") or len(layers) <= _SHOWN:
        return hint
    every = -(-len(layers) // _SHOWN)
    return f"; known: {listed(list(layers)[::every], _SHOWN)}, and others"
