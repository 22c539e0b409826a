"""A strongly augmented view of a batch: moved, turned, other contrast and brightness, a square blanked.

What it changes comes on top of the experiment's own ``[transforms]`` and works on whole batches of normalised
images of any number of channels, on their device. Nothing is mirrored: whether left is like right, the
experiment says. A strength of 1 moves by up to an eighth of the side, turns by up to 30 degrees, multiplies
the deviations from an image's mean by 0.5 to 1.5, adds -0.5 to 0.5 standard deviations of normalised pixels,
and blanks a square of half the side (DeVries and Taylor 2017, arXiv 1708.04552), as AutoAugment's users do on
top of their policies (Cubuk et al. 2019, arXiv 1805.09501); smaller strengths do less of each.
"""

from __future__ import annotations

import torch

from fedvision.data.transforms import crop, cutout, rotate


def strong_view(x: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Return a strongly augmented view of images [B, channels, H, W], normalised; 0 returns them as they are.

    Args:
        x: The images.
        strength: How much is changed, 0 <= strength <= 1.
        generator: Source of all that is drawn.
    """
    if not strength:
        return x
    batch, _, height, width = x.shape
    side = min(height, width)

    def spread(limit: float) -> torch.Tensor:
        """Draw a number within the limit for each image, in the form [B, 1, 1, 1]."""
        drawn = 2 * torch.rand(batch, generator=generator, device=generator.device) - 1
        return (limit * strength * drawn).to(x).view(-1, 1, 1, 1)

    if padding := round(strength * side / 8):
        x = crop(x, torch.randint(2 * padding + 1, (2, batch), generator=generator), padding)
    x = rotate(x, spread(30.0).flatten())
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (1 + spread(0.5)) * (x - mean) + spread(0.5)
    if square := round(strength * side / 2):
        centres = [torch.randint(size, (batch,), generator=generator) for size in (height, width)]
        x = cutout(x, torch.stack(centres), square)
    return x
