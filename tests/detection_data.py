"""Images with bright squares whose boxes are known, and small detectors for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedvision.data.boxes import Placement, packed
from fedvision.data.dataset import Dataset, ImageSet
from tests.experiments import tiny

SIDE, CLASSES = 32, ("red", "green", "blue")
SMALL: dict[str, dict[str, Any]] = {
    use: {"use": use, "backbone": {"use": "resnet8", "width": 8}, "channels": 8, "levels": 1, **keys}
    for use, keys in {
        "fcos": {"depth": 1},
        "retinanet": {"depth": 1},
        "ssdlite": {},
        "faster-rcnn": {"hidden": 16, "pooled": 3, "proposals": 20},
    }.items()
}
"""Detectors that train in a moment."""


def squares(*, images: int = 24, test: int = 6, seed: int = 0, lacking: bool = False) -> Dataset:
    """Return images with up to three squares of 8 to 14 pixels, one in ten of nothing, two crowds.

    Args:
        images: For training.
        test: For measurement.
        seed: Of the squares.
        lacking: Whether no training image shows the last class.
    """
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (images + test, SIDE, SIDE, 3)).astype(np.uint8)
    found = []
    for number, image in enumerate(pixels):
        own = []
        for place in range(0 if number % 10 == 9 else int(rng.integers(1, 4))):
            side = int(rng.integers(8, 15))
            left, top = (int(v) for v in rng.integers(0, SIDE - side, 2))
            label = (number + place) % (len(CLASSES) - (lacking and number < images))
            image[top : top + side, left : left + side, label] = 250
            own.append(
                [label, left, top, side, side, side * side, float(number in (3, images + 1) and place == 0)]
            )
        found.append(np.array(own, np.float64).reshape(-1, 7))
    targets = packed(found, [Placement(width=SIDE, height=SIDE)] * len(found))
    parts = [
        ImageSet(images=pixels[part], labels=targets[part]) for part in (slice(images), slice(images, None))
    ]
    return Dataset(train=parts[0], test=parts[1], classes=CLASSES)


def experiment(model: str | dict[str, Any] = "fcos", **tables: Any) -> Any:
    """Return an experiment on such images with one of the small detectors, or another ``[model]`` table."""
    base: dict[str, Any] = {
        "data": {"use": f"{__name__}:squares"},
        "partition": {"use": "iid", "clients": 3},
        "task": {"use": "detection"},
        "model": SMALL[model] if isinstance(model, str) else model,
        "training": {"batch_size": 4, "lr": 0.01, "device": "cpu"},
        "rounds": 2,
    }
    return tiny(**base | tables)
