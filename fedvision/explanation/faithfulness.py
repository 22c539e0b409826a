"""How well a map agrees with what a network does: deletion and insertion, beside a random map.

Petsiuk et al. 2018, "RISE", arXiv 1806.07421: the most important pixels are taken away first (deletion, low
is good) or put in first (insertion, high is good), and the class's probability is averaged over the way. Here
the way has ``STEPS`` equal parts; what is taken away becomes the mean colour, and insertion begins with the
blurred image. Single pixels strewn over an image disturb a network more than as many in one place, so the
random map has as many cells as the map that it stands beside.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedvision import seeding
from fedvision.explanation.scored_network import ScoredNetwork

STEPS = 12
"""Parts in which pixels are taken away or put in."""


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """Scores of one map, means of the class's probability, 0 to 1."""

    deletion: float
    """While the map's most important pixels are taken away."""
    insertion: float
    """While they are put in."""
    random_deletion: float
    """The same by the random map."""
    random_insertion: float
    """The same by the random map."""

    @property
    def gain(self) -> float:
        """(insertion - deletion) less that of the random map: above 0 the map is better than random."""
        return self.insertion - self.deletion - (self.random_insertion - self.random_deletion)


def faithfulness(
    scored: ScoredNetwork,
    image: NDArray[np.uint8],
    map: NDArray[np.float32],
    label: int,
    *,
    grid: tuple[int, int],
    further: NDArray[np.float32] | None = None,
    seed: int = 0,
    steps: int = STEPS,
) -> Faithfulness:
    """Measure a map of one image.

    Args:
        scored: The network.
        image: uint8 [H, W, channels].
        map: The importance of each pixel [H, W].
        label: The class whose probability is measured.
        grid: (h, w) of the cells from which the map was enlarged.
        further: What the network reads beside the image [W]; it stays.
        seed: Of the random map; equal images have equal random maps.
        steps: Parts, >= 1.
    """
    empty, blurred = np.broadcast_to(fill(scored, image.shape[2]), image.shape), blur(image)
    rng = seeding.numpy_stream(seed, "random-map", _number(image))
    noise = enlarged(torch.from_numpy(rng.random(grid, np.float32)), image.shape[:2])
    frames = [image, empty, blurred]
    for order in (ranks(map, rng), ranks(noise, rng)):
        for start, end in ((image, empty), (blurred, image)):
            frames += between(start, end, order, steps)
    shares = scored.probabilities(np.stack(frames), further)[:, label].astype(np.float64)
    whole, gone, least = shares[:3]
    ways = shares[3:].reshape(4, steps - 1)
    ends = ((whole, gone), (least, whole)) * 2
    means = [
        (sum(inner) + (first + last) / 2) / steps for inner, (first, last) in zip(ways, ends, strict=True)
    ]
    return Faithfulness(
        deletion=float(means[0]),
        insertion=float(means[1]),
        random_deletion=float(means[2]),
        random_insertion=float(means[3]),
    )


def between(
    start: NDArray[np.uint8], end: NDArray[np.uint8], order: NDArray[np.int64], steps: int
) -> list[NDArray[np.uint8]]:
    """Return the images between two, in which the first 1/steps, 2/steps, ... of the pixels are the end's.

    Args:
        start: uint8 [H, W, channels].
        end: Likewise.
        order: The rank of each pixel [H, W], 0 the first.
        steps: Parts; steps - 1 images lie between.
    """
    return [
        np.where((order * steps < step * order.size)[..., None], end, start).astype(np.uint8)
        for step in range(1, steps)
    ]


def ranks(map: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the rank of each pixel [H, W], that of the largest value 0; chance orders equal ones."""
    order = np.lexsort((rng.random(map.size), -map.ravel()))
    found = np.empty(map.size, np.int64)
    found[order] = np.arange(map.size)
    return found.reshape(map.shape)


def fill(scored: ScoredNetwork, channels: int) -> NDArray[np.uint8]:
    """Return the colour [channels] that is 0 after normalisation, but for rounding."""
    transform = scored.settings.transform
    black = torch.zeros(1, 1, 1, channels, dtype=torch.uint8)
    low, high = (transform.normalise(one)[0, :, 0, 0].double() for one in (black, black + 255))
    mean = (255 * low / (low - high)).numpy()
    # A gray image that is shown as colour has one number for three means.
    colour = mean if len(mean) == channels else np.full(channels, mean.mean())
    found: NDArray[np.uint8] = np.clip(np.rint(colour), 0, 255).astype(np.uint8)
    return found


def blur(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image [H, W, channels] blurred by a Gaussian whose deviation is 1/8 of the shorter side."""
    sigma = min(image.shape[:2]) / 8
    half = int(2 * sigma)
    offsets = torch.arange(-half, half + 1, dtype=torch.float32)
    weights = torch.exp(-((offsets / sigma) ** 2) / 2)
    weights = weights / weights.sum()
    x = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[:, None]
    x = F.pad(x, (half,) * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    found: NDArray[np.uint8] = x[:, 0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
    return found


def enlarged(cells: torch.Tensor, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Return cells [h, w] as a map of pixels (H, W), bilinear."""
    height, width = size
    found = F.interpolate(cells[None, None].float(), (height, width), mode="bilinear", align_corners=False)
    result: NDArray[np.float32] = found[0, 0].cpu().numpy()
    return result


def _number(image: NDArray[np.uint8]) -> int:
    """Return a number of an image's pixels, so that its random map does not depend on its place."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()[:4], "big")
