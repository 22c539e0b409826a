"""Which method fits a network, and at which of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fedvision.errors import ConfigError, PluginError
from fedvision.explanation.attention import Layout, RolloutProbe, library_layout, own_layout
from fedvision.explanation.branches import BRANCHES
from fedvision.explanation.probes import CamProbe, Probe
from fedvision.explanation.result import METHODS
from fedvision.inputs import Batch, images_of
from fedvision.models.base import ImageModel
from fedvision.models.expansions import ExpandedLinear
from fedvision.models.fusion import FusionBackbone
from fedvision.models.gray import Gray
from fedvision.models.inputs_alone import InputsAlone
from fedvision.models.mirrored import is_mirrored
from fedvision.models.parts import Encoder, Extractor
from fedvision.models.rnn import RecurrentFeatures
from fedvision.models.taps import find
from fedvision.models.tokens import Features, as_map, patch_grid
from fedvision.models.transformer import Transformer
from fedvision.models.vit import VitBackbone

_SIDE = 4
"""Places a side of the map that is taken, where there is one: a coarser one shows little of where."""
_MAPS = "a network with feature maps of more than one place"
_NEEDS = {
    "grad-cam": _MAPS,
    "hires-cam": _MAPS,
    "attention-rollout": "a Transformer whose attention is known: vit, a fusion, torchvision's or timm's ViT",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a network is explained."""

    probes: Mapping[str, Probe] = field(default_factory=dict)
    """By the branch, empty where there is one; none are integrated gradients."""
    visits: int = 1
    """How often a pass goes through the layers: twice where features are averaged with the mirror image's."""
    fusion: FusionBackbone | None = None
    """The part of the network that joins branches."""

    @property
    def method(self) -> str:
        """Its name."""
        used = [probe.name for probe in self.probes.values()]
        return " and ".join(dict.fromkeys(used)) or "integrated-gradients"


def plan(network: nn.Module, batch: Batch, method: str) -> Plan:
    """Choose what explains a network.

    Args:
        network: The network, in evaluation mode.
        batch: A few images as it takes them, to find its layers with.
        method: One of ``METHODS``.

    Raises:
        ConfigError: There is no such method, it does not fit the network, or none does.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    backbone = network.backbone if isinstance(network, ImageModel) else network
    inner = backbone.network if isinstance(backbone, Gray) else backbone
    if isinstance(inner, InputsAlone):
        raise ConfigError("this network reads no pixels (extractor = 'none'), so no map of them explains it")
    visits = 2 if is_mirrored(backbone) else 1
    fusion = inner if isinstance(inner, FusionBackbone) else None
    size = (images_of(batch).shape[2], images_of(batch).shape[3])
    probes: dict[str, Probe | None] = {}
    if method != "integrated-gradients":
        mean = method == "grad-cam"
        if fusion:
            probes = _of_fusion(fusion, batch, mean)
        else:
            probes = {"": _of_network(inner, backbone, batch, visits, size, mean)}
    if isinstance(network, ImageModel) and isinstance(network.head, ExpandedLinear):
        return _without_gradient(probes, visits, fusion)
    found = {
        name: probe for name, probe in probes.items() if probe is not None and method in ("auto", probe.name)
    }
    if method in _NEEDS and not found:
        raise ConfigError(f"method {method!r} needs {_NEEDS[method]}, and this is none; leave the method out")
    return Plan(probes=found, visits=visits, fusion=fusion)


def _without_gradient(probes: Mapping[str, Probe | None], visits: int, fusion: FusionBackbone | None) -> Plan:
    """Return plain rollout: no gradient passes the whole numbers of ``model.expand``.

    Raises:
        ConfigError: There is no Transformer.
    """
    found = {name: probe.plain() for name, probe in probes.items() if isinstance(probe, RolloutProbe)}
    if not found:
        raise ConfigError(
            "model.expand makes whole numbers of the features, through which no gradient passes, so no "
            "method but attention-rollout of a Transformer explains such a network"
        )
    return Plan(probes=found, visits=visits, fusion=fusion)


def _of_network(
    inner: nn.Module, called: nn.Module, batch: Any, visits: int, size: tuple[int, int], mean: bool
) -> Probe | None:
    """Return what explains a network of one branch; None where neither attention nor a map is found.

    Args:
        inner: The network, or its backbone.
        called: What is called with the batch: the same, or what shows it gray images.
        batch: A few images.
        visits: How often a pass goes through its layers.
        size: (H, W) of the images.
        mean: Whether gradients are averaged over places.
    """
    if layout := _layout(inner, size):
        return RolloutProbe(layout)
    return _of_map(called, batch, visits, _SIDE, mean) or _of_map(called, batch, visits, 2, mean)


def _of_map(called: nn.Module, batch: Any, visits: int, least: int, mean: bool) -> Probe | None:
    """Return what explains by the last map of so many places a side; None where there is none."""
    try:
        (layer,) = find(called, batch, [""], "the network", calls=visits, least=least)
    except PluginError:
        return None
    return CamProbe(called.get_submodule(layer.name), layer.arranged, mean=mean)


def _layout(network: nn.Module, size: tuple[int, int]) -> Layout | None:
    if isinstance(network, VitBackbone):
        return own_layout(network.transformer, patch_grid(size, network.patch))
    return library_layout(network)


def _of_fusion(fusion: FusionBackbone, batch: Batch, mean: bool) -> dict[str, Probe | None]:
    """Return what explains each branch; None where it is not known which token is where."""
    images, extractor = images_of(batch), fusion.extractor
    size = (images.shape[2], images.shape[3])
    joined = _places(extractor, -1, size)
    found: dict[str, Probe | None] = dict.fromkeys(BRANCHES)
    if joined is None or min(joined[1]) < _SIDE:
        found["extractor"] = _of_map(extractor, images, 1, _SIDE, mean)
    if joined is not None and found["extractor"] is None:
        prefix, grid = joined
        found["extractor"] = CamProbe(
            fusion.join, lambda tokens: as_map(tokens[:, prefix:], grid), argument=True, mean=mean
        )
    transformer = fusion.transformer
    if isinstance(transformer, Encoder):
        with torch.no_grad():
            shown = transformer.shown(images)
        found["transformer"] = _of_network(transformer.network, transformer.network, shown, 1, size, mean)
    elif isinstance(transformer, Transformer):
        read = (0, patch_grid(size, fusion.patch)) if fusion.patch else _places(extractor, 0, size)
        if read is not None:
            found["transformer"] = RolloutProbe(own_layout(transformer, read[1], read[0]))
    return found


def _places(extractor: Features, which: int, size: tuple[int, int]) -> tuple[int, tuple[int, int]] | None:
    """Return how many of an extractor's tokens are no places, and the grid (h, w) of the others.

    Args:
        extractor: The extractor.
        which: Of its layers: 0 or -1.
        size: (H, W) of the images.
    """
    if not isinstance(extractor, Extractor):
        return 0, extractor.grid
    layer, network = extractor.layers[which], extractor.network
    if layer.grid[1] > 1:
        return 0, layer.grid
    if isinstance(inner := getattr(network, "features", None), RecurrentFeatures):
        return 0, inner.grid
    layout = _layout(network, size)
    tokens = layer.grid[0]
    if layout and tokens - layout.prefix == layout.grid[0] * layout.grid[1]:
        return layout.prefix, layout.grid
    return None
