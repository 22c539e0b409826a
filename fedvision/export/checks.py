"""An exported file beside PyTorch's model, before it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedvision import seeding
from fedvision.errors import RunError
from fedvision.inputs import width

if TYPE_CHECKING:
    from fedvision.export.graph import PredictionGraph
    from fedvision.trained_model import TrainedModel

Predictor: TypeAlias = Callable[[NDArray[np.uint8], NDArray[np.float32] | None], NDArray[np.float32]]
"""Images uint8 [N, H, W, channels] and further inputs [N, W] or None -> probabilities float32 [N, C], of a
dense task [N, C, H, W]."""
TOLERANCE = 1e-5
"""By how much a probability may differ."""
_OTHER_SIZES = 0.05
"""The same of images of another size, where gray values may be rounded otherwise."""
_RANDOM = 48
"""Random images of the check."""


class Agreement(NamedTuple):
    """How far a file's probabilities are from PyTorch's."""

    images: int
    """On how many images they were compared."""
    difference: float
    """The greatest difference of a probability."""
    decisions: int
    """Images whose predicted class or labels differ."""


def in_float32(model: TrainedModel) -> TrainedModel:
    """Return the model with the arithmetic of an exported file, whatever its run measured in."""
    return dataclasses.replace(model, settings=dataclasses.replace(model.settings, precision="float32"))


def reference(model: TrainedModel) -> Predictor:
    """Return PyTorch's model as a ``Predictor`` of images of its own size; they go through it at once."""
    from fedvision.training.evaluate import classify

    def predict(images: NDArray[np.uint8], further: NDArray[np.float32] | None) -> NDArray[np.float32]:
        return classify(
            model.network,
            images,
            model.settings,
            num_classes=len(model.classes),
            sharpness=model.description.probability_scale,
            further=further,
        )[1]

    return predict


def random_images(model: TrainedModel) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Return images of the network's size and, where it reads columns, rows, every second one absent.

    Half of the images are noise, half are coarse patterns, which go through a network otherwise.
    """
    draw = seeding.numpy_stream(0, "check of an exported model")
    height, wide, channels = model.description.image.shape
    noise = draw.integers(0, 256, (_RANDOM // 2, height, wide, channels), np.uint8)
    coarse = draw.integers(0, 256, (_RANDOM // 2, -(-height // 4), -(-wide // 4), channels), np.uint8)
    patterns = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :wide]
    images = np.concatenate([noise, patterns])
    if not width(model.description.model.inputs):
        return images, None
    import torch

    from fedvision.inputs import for_trial

    trial = for_trial(torch.zeros(len(images), 1, 1, 1), model.description.model.inputs)
    return images, trial.further.numpy()  # type: ignore[union-attr]


def compare(
    model: TrainedModel,
    predict: Predictor,
    images: NDArray[np.uint8],
    further: NDArray[np.float32] | None = None,
    *,
    indices: NDArray[np.int64] | None = None,
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Compare a file's probabilities with PyTorch's, in batches of unequal sizes.

    A decision that PyTorch itself takes by less than the tolerance may fall otherwise.

    Args:
        model: The trained model.
        predict: The file.
        images: uint8 [N, H, W, channels] of the network's size.
        further: float32 [N, W], where the network reads such.
        indices: Which of the N images are compared, int64 [n]; None is all.
        tolerance: By how much a probability may differ.
    """
    expected, several = reference(in_float32(model)), model.task.per_image == "one of each"
    difference, decisions, start, batch = 0.0, 0, 0, 1
    chosen = np.arange(len(images)) if indices is None else indices
    while start < len(chosen):
        part = chosen[start : start + batch]
        rows = None if further is None else further[part]
        own = np.array(images[part])
        wanted, found = expected(own, rows), predict(own, rows)
        gap = np.abs(wanted.astype(np.float64) - found)
        difference = max(difference, float(gap.max()) if np.isfinite(gap).all() else np.inf)
        decisions += _others(wanted, found, several, tolerance)
        start, batch = start + batch, min(2 * batch + 1, model.description.inference.batch_size)
    return Agreement(len(chosen), difference, decisions)


def _others(wanted: NDArray[np.float32], found: NDArray[np.float32], several: bool, tolerance: float) -> int:
    """Return how many images are decided otherwise, though PyTorch's decision is no close one."""
    if several:
        close = np.abs(wanted - 0.5) <= tolerance
        return int((((wanted >= 0.5) != (found >= 0.5)) & ~close).any(axis=1).sum())
    named = np.expand_dims(found.argmax(axis=1), 1)
    lead = wanted.max(axis=1) - np.take_along_axis(wanted, named, 1)[:, 0]  # [B], or of each pixel [B, H, W]
    return int((lead > 2 * tolerance).reshape(len(wanted), -1).any(axis=1).sum())


def require_agreement(found: Agreement, what: str, tolerance: float = TOLERANCE) -> None:
    """Refuse a file that computes something else.

    Args:
        found: As ``compare`` returns it.
        what: The file, for the error.
        tolerance: By how much a probability may differ.

    Raises:
        RunError: A probability differs by more, or an image is decided otherwise.
    """
    if found.difference > tolerance or found.decisions:
        raise RunError(
            f"{what}: not written: on {found.images:,} images its probabilities differ from PyTorch's by up "
            f"to {found.difference:.2g}, where {tolerance:g} is allowed, and {found.decisions:,} images are "
            "decided otherwise; use the run with PyTorch, or allow more with --tolerance"
        )


def require_other_sizes(graph: PredictionGraph, predict: Predictor, what: str) -> None:
    """Check that a file takes images of other sizes and makes of them what its graph makes in PyTorch.

    A gray value that the two round otherwise moves a probability a little, so more may differ here.

    Raises:
        RunError: It computes something else.
    """
    import torch

    if graph.fit == "exact":
        return
    height, wide = graph.size
    draw = seeding.numpy_stream(0, "check of an exported model", 1)
    for size in ((height + 5, wide), (max(1, height // 2), 2 * wide + 1), (1, 1)):
        images = draw.integers(0, 256, (2, *size, graph.image_channels), np.uint8)
        rows = np.full((2, graph.further), np.nan, np.float32) if graph.further else None
        given = (torch.from_numpy(images), *(() if rows is None else (torch.from_numpy(rows),)))
        with torch.no_grad():
            wanted = graph(*given).numpy()
        if not np.allclose(predict(images, rows), wanted, atol=_OTHER_SIZES):
            raise RunError(
                f"{what}: not written: of images of {size[0]} x {size[1]} it makes something else than "
                "PyTorch; write it with --fit exact, for images of the network's own size"
            )
