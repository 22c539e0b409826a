"""What is known of a source's images before any is read: the size of those sets that have one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GRAY_28 = ("mnist", "fashion-mnist", "kmnist", "qmnist", "emnist")
_RGB_32 = ("cifar10", "cifar100", "svhn")
_RGB_96 = ("stl10", "pcam")
SIZES: Mapping[str, tuple[int, int, int]] = {
    "digits": (8, 8, 1),
    "usps": (16, 16, 1),
    **dict.fromkeys(_GRAY_28, (28, 28, 1)),
    **dict.fromkeys(_RGB_32, (32, 32, 3)),
    **dict.fromkeys(_RGB_96, (96, 96, 3)),
}
"""Height, width and channels of the sets whose images are all of one size."""


def image_size(use: str, args: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Return (H, W, channels) of a source's images, None where only reading them would show it.

    Args:
        use: The source's name, as in ``data.use``.
        args: Its keys, as in ``[data]``: ``height`` and ``width``, or the side ``size`` of square images.
    """
    if use in SIZES:
        return SIZES[use]
    size = args.get("size")
    height, width, channels = args.get("height", size), args.get("width", size), args.get("channels", 3)
    if not all(isinstance(value, int) and value > 0 for value in (height, width, channels)):
        return None
    return int(height), int(width), int(channels)
