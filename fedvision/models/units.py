"""The units of a backbone, from images to features: of which ``model.train = "last:N"`` trains the last ones.

A unit is a child of the backbone that has parameters. ``nn.Sequential`` and ``nn.ModuleList`` stand for their
children, and so does a child of which a list of blocks holds more than half of the backbone's parameters, as
the encoder of a vision transformer does. A part (``models.parts``) stands for the units of its network. A
block of a residual network, of a transformer or of convolution and norm is one unit.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fedvision.errors import ConfigError
from fedvision.models.gray import Gray
from fedvision.models.parts import Part

_CONTAINERS = (nn.Sequential, nn.ModuleList)


def units(backbone: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    """Return the units of a backbone by their names, in the order in which they were registered."""
    return tuple(_units("", backbone, _size(backbone) / 2))


def last_units(backbone: nn.Module, count: int, where: str) -> tuple[str, ...]:
    """Return the names of the last units.

    Args:
        backbone: The backbone.
        count: How many, >= 1.
        where: The key and its value, for the error.

    Raises:
        ConfigError: There are fewer.
    """
    found = [name for name, _ in units(backbone)]
    if count > len(found):
        raise ConfigError(
            f'{where}: the backbone has {len(found)} units; name no more of them, or set it to "all"'
        )
    return tuple(found[-count:])


def _units(name: str, module: nn.Module, half: float) -> Iterator[tuple[str, nn.Module]]:
    for key, child in module.named_children():
        inner = f"{name}.{key}" if name else key
        if not _size(child):
            continue
        if isinstance(child, Part):
            yield from _units(f"{inner}.network", child.network, _size(child.network) / 2)
            continue
        # Not a subclass: convolution, norm and activation in a row are one unit.
        wraps = any(type(part) in _CONTAINERS and _size(part) > half for part in child.children())
        if type(child) in _CONTAINERS or isinstance(module, Gray) or wraps:
            yield from _units(inner, child, half)
        else:
            yield inner, child


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
