"""Images whose pixels have classes, and the tables of an experiment on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset, ImageSet
from tests.experiments import tiny

SIDE, CLASSES = 16, ("ground", "bright", "brighter")


def squares(*, images: int = 30, test: int = 9, columns: bool = False) -> Dataset:
    """Return dark images with a bright square in some and a brighter one in others; a row is ignored."""
    rng = np.random.default_rng(0)
    masks = np.zeros((images + test, SIDE, SIDE), np.uint8)
    for number, one in enumerate(masks):
        top, left = rng.integers(1, SIDE - 6, 2)
        side = 6 if number % 3 == 1 else 3
        one[top : top + side, left : left + side] = number % 3
        one[0] = 255
    shade = 80 * np.where(masks == 255, 0, masks) + rng.integers(0, 40, masks.shape)
    pixels = shade.astype(np.uint8)[..., None]
    facts = {"ward": np.array(["a", "b", "c"])[np.arange(images + test) % 3]} if columns else {}
    train, held = (
        ImageSet(
            images=pixels[part],
            labels=masks[part],
            columns={name: values[part] for name, values in facts.items()},
        )
        for part in (slice(images), slice(images, images + test))
    )
    return Dataset(train=train, test=held, classes=CLASSES)


def segments(**tables: Any) -> ExperimentConfig:
    """Return an experiment on them with a small U-Net, three clients and two rounds."""
    base: dict[str, Any] = {
        "task": {"use": "segmentation"},
        "data": {"use": f"{__name__}:squares"},
        "model": {"use": "unet", "width": 4, "depth": 2},
        "partition": {"use": "dirichlet", "clients": 3, "alpha": 1.0},
        "evaluation": {"holdout": 0.2},
        "training": {"batch_size": 4, "lr": 0.2},
        "rounds": 2,
    }
    return tiny(**base | tables)
