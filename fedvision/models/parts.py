"""Networks inside a network: extractors, whose tokens are read, and backbones, whose features are joined.

A part holds its network under ``network``, with the names of tensors that it has alone, and what an
experiment says of its weights and training. It is built and tried once, so a misfit is one sentence.

Shape letters: B batch, D features of an image, F features of a token, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from fedvision.errors import ConfigError, PluginError, first_line
from fedvision.models.base import ImageModel, LibraryNames
from fedvision.models.factory import call_factory, forward, wants_colour
from fedvision.models.part_config import PartConfig, part
from fedvision.models.taps import drop_unused, find, outputs, tap
from fedvision.models.tokens import Features

_IMAGES, _CLASSES = 3, 2
"""Images of a trial, and classes of the head that a factory builds and nobody uses."""
_P = TypeVar("_P", bound="Part")


class Part(nn.Module):
    """A network inside another.

    Args:
        config: What the experiment says of it; its name is that inside the part around it.
        built: What its factory built.
        gray: Whether gray images are shown to it as colour.
    """

    left_out: tuple[str, ...] = ()
    """Prefixes of tensors that the network has elsewhere and not here."""
    scale: torch.Tensor | None
    """[channels, 1, 1] or [1, 1, 1]: what images are multiplied by."""
    shift: torch.Tensor | None
    """What is added after that, likewise."""

    def __init__(self, config: PartConfig, built: nn.Module, gray: bool) -> None:
        super().__init__()
        halved = isinstance(built, ImageModel)
        self.config, self.gray, self.halved = config, gray, halved
        self.network: nn.Module = built.backbone if isinstance(built, ImageModel) else built
        self.library: LibraryNames | None = built.library if isinstance(built, ImageModel) else None
        # Buffers, as constants made in each pass would stop a recording of it.
        for name in ("scale", "shift"):
            constants = torch.tensor(getattr(config, name))[:, None, None] if config.scale else None
            self.register_buffer(name, constants, persistent=False)

    def shown(self, images: torch.Tensor) -> torch.Tensor:
        """Return images [B, channels, H, W] as the network takes them."""
        images = images.expand(-1, 3, -1, -1) if self.gray else images
        return images if self.scale is None or self.shift is None else images * self.scale + self.shift


class Extractor(Part, Features):
    """A network up to one of its layers: images -> that layer's map [B, F, h, w] or tokens [B, T, F].

    Args:
        config: See ``Part``; its ``layer`` is the layer, empty the last one that returns several tokens.
        built: See ``Part``.
        gray: See ``Part``.
        images: A few images [B, channels, H, W] to find the layer with.
        early: A layer before it, whose output is returned as well; empty where it is not needed.
    """

    def __init__(
        self, config: PartConfig, built: nn.Module, gray: bool, images: torch.Tensor, early: str = ""
    ) -> None:
        super().__init__(config, built, gray)
        shown = self.shown(images)
        names = [early, config.layer] if early else [config.layer]
        self.layers = find(self.network, shown, names, config.key)
        """The layers whose outputs are returned, the tokens' own last."""
        self.channels, self.grid = self.layers[-1].channels, self.layers[-1].grid
        tap(self.network, self.layers)
        self.left_out = drop_unused(self.network, self.layers, shown[:1])
        self.network.train()

    @property
    def layer(self) -> str:
        """The name of the layer whose output are the tokens."""
        return self.layers[-1].name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last layer's map [B, F, h, w] or tokens [B, T, F]."""
        return self.outputs(images)[-1]

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the output of each of ``layers``."""
        return outputs(self.network, self.layers, self.shown(images))


class Encoder(Part):
    """A backbone of its own: images -> features [B, D]."""

    def __init__(self, config: PartConfig, built: nn.Module, gray: bool, images: torch.Tensor) -> None:
        super().__init__(config, built, gray)
        if not self.halved:
            raise PluginError(
                f"{config.key}: {config.use!r} builds a {type(built).__name__} without backbone and head; "
                "let its factory return fedvision.models.base.ImageModel(backbone, head)"
            )
        if config.layer:
            raise PluginError(f"{config.key}.layer is for an extractor; leave it out")
        found = forward(self.network, self.shown(images), training=False)
        if not isinstance(found, torch.Tensor) or found.ndim != 2:
            shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise PluginError(
                f"{config.key}: its backbone makes {shape} of {len(images)} images, and [B, D] is needed; "
                "take another network"
            )
        self.out_features: int = found.shape[1]
        self.network.train()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, D]."""
        features: torch.Tensor = self.network(self.shown(images))
        return features


def build_extractor(
    name: str, table: Any, in_channels: int, image_size: tuple[int, int], early: str = ""
) -> Extractor:
    """Build an extractor.

    Args:
        name: The key that names it.
        table: The key's value: a network's name, or a table.
        in_channels: Channels of the images.
        image_size: (H, W).
        early: See ``Extractor``.

    Raises:
        PluginError: There is no such network, it cannot be built, or returns no tokens.
        ConfigError: A key of the table is wrong.
    """
    return build_part(name, table, in_channels, image_size, partial(Extractor, early=early))


def build_encoder(name: str, table: Any, in_channels: int, image_size: tuple[int, int]) -> Encoder:
    """Build a backbone that returns features [B, D]; arguments and errors as for ``build_extractor``."""
    return build_part(name, table, in_channels, image_size, Encoder)


def build_part(
    name: str,
    table: Any,
    in_channels: int,
    image_size: tuple[int, int],
    kind: Callable[[PartConfig, nn.Module, bool, torch.Tensor], _P],
) -> _P:
    """Build a part of any kind.

    Args:
        name: As for ``build_extractor``, as are the next three and the errors.
        table: A network's name, or a table.
        in_channels: Channels of the images.
        image_size: (H, W).
        kind: Makes it of its configuration, what its factory built, whether gray images are shown to it as
            colour, and a few images.
    """
    config = part(name, table)
    return _within(config, lambda: kind(config, *_built(config, in_channels, image_size)))


def parts_of(model: nn.Module) -> dict[str, tuple[str, Part]]:
    """Return a network's parts by the prefix of their tensors, each with its dotted name, outer first."""
    found: dict[str, tuple[str, Part]] = {}
    for place, module in model.named_modules():
        if isinstance(module, Part):
            around = [name for prefix, (name, _) in found.items() if f"{place}.".startswith(prefix)]
            name = ".".join((*around[-1:], module.config.name))
            found[f"{place}."] = (name, module)
    return found


def own_tensors(model: nn.Module, names: Iterable[str], prefix: str) -> tuple[str, ...]:
    """Return those of a network's tensors that a part has, without those of the parts inside it.

    Args:
        model: The network.
        names: Of its tensors.
        prefix: The part's.
    """
    inside = tuple(other for other in parts_of(model) if other.startswith(prefix) and other != prefix)
    return tuple(name for name in names if name.startswith(prefix) and not name.startswith(inside))


def others(model: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """Return the layers of a network that belong to none of the named parts, but to the network or a part."""
    parts, found = parts_of(model), list[nn.Module]()
    for place, module in model.named_modules():
        around = [name for prefix, (name, _) in parts.items() if f"{place}.".startswith(prefix)]
        if not around or around[-1] not in names:
            found.append(module)
    return found


def _built(
    config: PartConfig, in_channels: int, image_size: tuple[int, int]
) -> tuple[nn.Module, bool, torch.Tensor]:
    """Return what a part's factory builds, whether gray images are shown to it as colour, and some images."""
    images = torch.zeros(_IMAGES, in_channels, *image_size)
    runtime = {
        "num_classes": _CLASSES,
        "in_channels": in_channels,
        "image_size": image_size,
        "inputs": {},
    }
    built = call_factory(config, runtime)
    return built, in_channels == 1 and wants_colour(built, images), images


def _within(config: PartConfig, build: Callable[[], _P]) -> _P:
    """Return a part; an error names its key."""
    try:
        return build()
    except ConfigError as error:
        text = str(error)
        if text.startswith(config.key):
            raise
        inner = text.startswith("model.")  # of a part of the part, which does not know where it is
        text = f"{config.key}.{text.removeprefix('model.')}" if inner else f"{config.key}: {text}"
        raise type(error)(text) from error
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{config.key}: {config.use!r} cannot work on these images: {first_line(error)}"
        ) from error
