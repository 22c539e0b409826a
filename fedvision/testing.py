"""A federation that takes about a second: for those who test a plug-in of their own.

::

    from fedvision.testing import run

    def test_my_strategy_learns():
        result = run(strategy="my_strategy:RootMean")
        assert result.scores["balanced_accuracy"] > 0.9

The plug-in's module is found as Python finds it, for pytest with ``pythonpath = ["."]``. What is checked
before any run is checked here, too; what a plug-in raises comes as the same error as in a run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedvision.api import RunResult, simulate
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset, ImageSet

_EXPERIMENT: Mapping[str, Any] = {
    "name": "test",
    "rounds": 2,
    "data": {"use": f"{__name__}:tiny_images"},
    "partition": {"use": "dirichlet", "clients": 3, "alpha": 1.0},
    "model": {"use": "cnn", "width": 4},
    "training": {"lr": 0.1, "epochs": 2, "batch_size": 8, "device": "cpu"},
}


def tiny_images(*, images: int = 90, size: int = 8, channels: int = 1, seed: int = 0) -> Dataset:
    """Make images of three classes that a small network distinguishes, one a third as frequent as another.

    Each class has a bright quarter of its own on dark noise. Every third image is a test image.

    Args:
        images: N, of training and test together, >= 30.
        size: H = W, a multiple of 2.
        channels: Of the images.
        seed: Of the noise and the order.

    Returns:
        Images uint8 [., size, size, channels], labels 0, 1, 2 in the shares 1/2, 1/3, 1/6.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(
        np.repeat([0, 1, 2], [images - images // 3 - images // 6, images // 3, images // 6])
    )
    pixels = rng.integers(0, 80, (images, size, size, channels), dtype=np.uint8)
    half = size // 2
    for label, (top, left) in enumerate([(0, 0), (0, half), (half, 0)]):
        pixels[labels == label, top : top + half, left : left + half] += 150
    test = np.arange(images) % 3 == 2
    train, held = (
        ImageSet(images=pixels[part], labels=labels[part].astype(np.int64)) for part in (~test, test)
    )
    return Dataset(train=train, test=held, classes=("common", "medium", "rare"))


def experiment(**tables: Any) -> ExperimentConfig:
    """Return a small experiment: three clients, two rounds, a tiny network.

    Args:
        tables: Keys and tables of the experiment's file, as TOML gives them, in the place of those here; of a
            table without ``use`` only the keys that it names change.

    Raises:
        ConfigError: A key or value is wrong.
    """
    whole = {key: dict(value) if isinstance(value, dict) else value for key, value in _EXPERIMENT.items()}
    for key, value in tables.items():
        merge = isinstance(value, Mapping) and "use" not in value and isinstance(whole.get(key), dict)
        whole[key] = {**whole[key], **value} if merge else value
    return ExperimentConfig.from_dict(whole)


def run(*, folder: Path | None = None, **tables: Any) -> RunResult:
    """Run a small experiment in this process.

    Args:
        folder: Where the run folder is made; a temporary one that is gone afterwards where it is left out.
        tables: As ``experiment`` takes them.

    Returns:
        The rounds' records and the final tensors.

    Raises:
        FedVisionError: As ``fedvision.simulate``.
    """
    if folder is not None:
        return simulate(experiment(**tables), out=folder / "run")
    with tempfile.TemporaryDirectory() as temporary:
        return simulate(experiment(**tables), out=Path(temporary) / "run")
