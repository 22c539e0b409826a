"""Batches on their way into the network: normalisation, size, augmentation and mixup of whole batches.

Nothing loops over images, and every random number comes from the generator passed in, so a batch is the same
on any engine and device. Augmentation follows normalisation: what it blanks or moves in from outside is 0,
which is the pixel 255 x ``transforms.mean``. That is the data set's mean colour where the experiment says it,
and grey 127.5 with the default mean of 0.5; torchvision's padding before normalisation is black instead.

- flip and padded crop: He et al. 2016, "Deep Residual Learning", arXiv:1512.03385, section 4.2
- cutout: DeVries and Taylor 2017, arXiv:1708.04552; the square's centre is anywhere, so the border may cut it
- mixup: Zhang et al. 2018, arXiv:1710.09412, one weight a batch; with partners by class Galdran et al. 2021,
  arXiv:2109.09850
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedvision.config import TransformConfig
from fedvision.data import box_transforms
from fedvision.errors import ConfigError

MEAN, STD = (0.5,), (0.25,)
"""Where neither the experiment nor the network's weights say others."""
Draws: TypeAlias = Mapping[str, Tensor]
"""What happens to each image of a batch, by name; every tensor's last dimension is B."""


def prepare(config: TransformConfig, channels: int) -> BatchTransform:
    """Build the transform of images with a number of channels.

    Raises:
        ConfigError: ``transforms.mean`` or ``transforms.std`` holds neither one number nor one per channel.
    """
    shown, _, _ = input_shape(config, (1, 1, channels))
    for name, values in (("mean", config.mean), ("std", config.std)):
        if len(values) not in (0, 1, shown):
            raise ConfigError(
                f"transforms.{name} holds {len(values)} numbers for images with {channels} channels; "
                f"write {channels} of them or one for all"
            )
    stored = config.views and not augmentations(config)
    return StoredViews(config, channels) if stored else BatchTransform(config, channels)


def augmentations(config: TransformConfig) -> list[str]:
    """Return the names of what is drawn anew for each image."""
    return [name for name in ("flip", "crop", "rotation", "cutout", "mixup") if getattr(config, name)]


def input_shape(config: TransformConfig, image: Sequence[int]) -> tuple[int, int, int]:
    """Return (channels, H, W) of what a network gets of images (H, W, channels)."""
    height, width, channels = image
    if config.size:
        height = width = config.size
    colour = channels == 1 and 3 in (len(config.mean), len(config.std))
    return 3 if colour else channels, height, width


def check_size(config: TransformConfig, size: tuple[int, int]) -> None:
    """Refuse augmentation that can leave nothing of an image.

    Args:
        config: The experiment's ``[transforms]``.
        size: (H, W) of what the network gets.

    Raises:
        ConfigError: ``crop`` or ``cutout`` reaches over the shorter side.
    """
    for name, pixels in (("crop", config.crop), ("cutout", config.cutout)):
        if pixels >= min(size):
            raise ConfigError(
                f"transforms.{name} is {pixels} pixels of images of {size[0]} x {size[1]}, of which nothing "
                f"would be left; it must be below {min(size)}, and usually is an eighth of the side "
                "(crop) or half of it (cutout)"
            )


class BatchTransform:
    """Normalise, augment and mix batches as an experiment's ``[transforms]`` says; built by ``prepare``."""

    def __init__(self, config: TransformConfig, channels: int) -> None:
        self.config, self.channels = config, input_shape(config, (1, 1, channels))[0]
        mean, std = (
            np.broadcast_to(np.array(v, np.float64), self.channels)
            for v in (config.mean or MEAN, config.std or STD)
        )
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._rows: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}

    def inputs(self, images: Tensor, *, channels_last: bool = True) -> Tensor:
        """Return images as the network takes them: normalised, then brought to their size.

        An image gets the same numbers in any batch.

        Args:
            images: uint8 [B, H, W, channels].
            channels_last: Strides of the result, as of ``normalise``.

        Returns:
            float32 [B, channels', H', W'] on the images' device, of the shape of ``input_shape``.
        """
        x = self.normalise(images, channels_last=channels_last)
        if not (side := self.config.size):
            return x
        return resize(x, side, self.config.interpolation or "bilinear", channels_last=channels_last)

    def normalise(self, images: Tensor, *, channels_last: bool = True) -> Tensor:
        """Return (pixel / 255 - mean) / std; gray images as colour where it has constants for three channels.

        One conversion, then one multiply-add in place. Channels last costs nothing more: the result is the
        buffer of the images as they lie, seen with its axes permuted. With a single channel PyTorch calls
        both layouts contiguous and picks kernels by the strides, so these are set for the wanted layout.

        Features of images, which have taken their place, are returned as they are.

        Args:
            images: uint8 [B, H, W, channels]; or float32 [B, 1, 1, D].
            channels_last: Strides of the result: of [B, H, W, channels] in memory, or contiguous.

        Returns:
            float32 [B, channels', H, W] on the images' device.
        """
        if images.is_floating_point():
            return images.permute(0, 3, 1, 2)
        if images.shape[3] < self.channels:
            images = images.expand(-1, -1, -1, self.channels)
        batch, height, width, channels = images.shape
        if channels_last:
            # A constant per channel would make inner loops of ``channels`` steps; a whole image row makes
            # this 6 times faster for 32 x 32 x 3 on a CPU.
            scale, shift = self._constants(images.device, width)
            x = images.to(torch.float32, memory_format=torch.contiguous_format)
            x = x.view(batch * height, width * channels)
            torch.addcmul(shift, x, scale, out=x)
            return x.view(batch, height, width, channels).permute(0, 3, 1, 2)
        scale, shift = self._constants(images.device, 1)
        x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1), out=x)

    def constants(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift of a channel, float32 [channels']: an input is ``pixel scale + shift``."""
        scale, shift = (torch.from_numpy(v).to(torch.float32) for v in (self._scale, self._shift))
        return scale, shift

    @property
    def draws(self) -> bool:
        """Whether anything is drawn for a batch."""
        return bool(augmentations(self.config))

    def draw(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw what ``apply`` does to each image of a batch, on the generator's own device.

        Args:
            batch: B.
            size: (H, W).
            generator: Source of every draw.

        Returns:
            One tensor [..., B] by the name of each thing that is switched on.
        """
        config, drawn = self.config, {}
        if config.flip:
            drawn["flip"] = _whole(2, (batch,), generator).bool()
        if config.crop:
            drawn["crop"] = _whole(2 * config.crop + 1, (2, batch), generator)
        if config.rotation:
            turn = torch.rand(batch, generator=generator, device=generator.device)
            drawn["rotation"] = (2 * turn - 1) * config.rotation
        if config.cutout:
            drawn["cutout"] = torch.stack([_whole(side, (batch,), generator) for side in size])
        return drawn

    def apply(self, x: Tensor, drawn: Draws, between: str = "bilinear") -> Tensor:
        """Flip, crop, rotate and blank each image as ``draw`` says.

        Args:
            x: float [B, channels, H, W], normalised.
            drawn: What happens to each of them.
            between: How a rotation finds values between pixels: ``"bilinear"`` or ``"nearest"``.

        Returns:
            The same shape, dtype, device and strides; ``x`` itself where nothing is drawn.
        """
        if "flip" in drawn:
            x = flip(x, drawn["flip"])
        if "crop" in drawn:
            x = crop(x, drawn["crop"], self.config.crop)
        if "rotation" in drawn:
            x = rotate(x, drawn["rotation"], between)
        if "cutout" in drawn:
            x = cutout(x, drawn["cutout"], self.config.cutout)
        return x

    def apply_to_map(self, maps: Tensor, drawn: Draws, fill: int) -> Tensor:
        """Return a value for each pixel, such as its class, changed as ``apply`` changes the images.

        No value is blended: a rotated map has the value of the nearest pixel.

        Args:
            maps: Whole numbers [B, H, W] within 2^24 of ``fill``.
            drawn: What ``apply`` got.
            fill: What stands where something from outside came in, or was blanked.
        """
        if not drawn:
            return maps
        x = (maps - fill)[:, None].to(torch.float32)  # outside is 0 to the operations on images
        return self.apply(x, drawn, "nearest")[:, 0].to(maps.dtype) + fill

    def apply_to_boxes(
        self, corners: Tensor, present: Tensor, drawn: Draws, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return boxes moved as ``apply`` moves the pixels, and which of them are left.

        Args:
            corners: [B, M, 4], left, top, right and bottom in pixels.
            present: bool [B, M]: which places hold a box.
            drawn: What ``apply`` got.
            size: (H, W) of the images.
        """
        return box_transforms.apply_to_boxes(corners, present, drawn, self.config, size)

    def mixup(
        self, x: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, float] | None:
        """Blend each image with another one of the batch.

        The weight w ~ Beta(a, a) is one for the batch: ``x' = w x + (1 - w) x[other]``, and the loss is
        ``w loss(labels) + (1 - w) loss(labels[other])``.

        With ``mixup_partner = "balanced"`` each image's partner is of any class of the batch with the same
        chance, and the partner's share is 1 - w ~ Beta(a, 1), whose mean a / (1 + a) is small for a small a:
        Galdran, Carneiro, Gonzalez Ballester 2021, "Balanced-MixUp for Highly Imbalanced Medical Image
        Classification", arXiv 2109.09850. There partners come from all training images by a second,
        class-balanced sampler; here from the batch, which costs no further image but has the classes that
        the batch has. Other images take the partner's place with repetition, where ``"random"`` permutes.

        Args:
            x: float [B, channels, H, W].
            labels: int64 [B]; of any form [B, ...] where partners are random.
            generator: Source of the weight and the pairs.

        Returns:
            ``(x', labels of the others [B], w)``, or None where mixup is off.
        """
        alpha = self.config.mixup
        if not alpha:
            return None
        # torch's Beta takes no generator, NumPy's does: one draw here seeds it.
        seed = int(_whole(2**62, (1,), generator))
        rng = np.random.default_rng(seed)
        if self.config.mixup_partner == "balanced":
            weight, other = 1 - float(rng.beta(alpha, 1)), balanced_partners(labels, generator)
        else:
            weight = float(rng.beta(alpha, alpha))
            other = torch.randperm(len(x), generator=generator, device=generator.device)
        other = other.to(x.device)
        mixed = torch.lerp(x, x[other], 1 - weight, out=torch.empty_like(x))
        return mixed, labels[other.to(labels.device)], weight

    def _constants(self, device: torch.device, width: int) -> tuple[Tensor, Tensor]:
        """Return scale and shift for a row of ``width`` pixels, float32 [width * channels], made once."""
        key = (device, width)
        if key not in self._rows:
            scale, shift = (
                torch.from_numpy(np.tile(v, width)).to(device, torch.float32)
                for v in (self._scale, self._shift)
            )
            self._rows[key] = scale, shift
        return self._rows[key]


def resize(x: Tensor, side: int, interpolation: str, *, channels_last: bool = True) -> Tensor:
    """Return images [B, channels, H, W] as [B, channels, side, side].

    Args:
        x: The images.
        side: Pixels.
        interpolation: ``"bilinear"`` or ``"bicubic"``, antialiased as Pillow's, or ``"nearest"``, the pixel
            in which the centre lies.
        channels_last: Strides of the result.
    """
    if x.shape[2:] == (side, side):
        return x
    if interpolation == "nearest":
        found = functional.interpolate(x, (side, side), mode="nearest-exact")
    else:
        found = functional.interpolate(x, (side, side), mode=interpolation, antialias=True)
    batch, channels, _, _ = found.shape
    out = found.new_empty((batch, side, side, channels) if channels_last else found.shape)
    out = out.permute(0, 3, 1, 2) if channels_last else out
    return found if found.stride() == out.stride() else out.copy_(found)


class StoredViews(BatchTransform):
    """Draws one of the views of each image, whose features lie in the image's place."""

    @property
    def draws(self) -> bool:
        """Whether anything is drawn for a batch."""
        return True

    def draw(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw the view of each image, from 1: the first one stored is the image itself."""
        return {"view": 1 + _whole(self.config.views, (batch,), generator)}

    def apply(self, x: Tensor, drawn: Draws, between: str = "bilinear") -> Tensor:
        """Return the features [B, D, 1, 1] of the views that were drawn, of all of them [B, D, V, 1]."""
        views = drawn["view"].to(x.device)
        return x[torch.arange(len(x), device=x.device), :, views, :].unsqueeze(2)


def balanced_partners(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an image of a batch for each of its images: each class with the same chance, then one of its own.

    Args:
        labels: int64 [B].
        generator: Source of the draws.

    Returns:
        int64 [B] on the generator's device, from 0 to B - 1, with repetition.
    """
    own = labels.to(generator.device)
    frequency = (own[:, None] == own).sum(1)
    return torch.multinomial(1 / frequency, len(labels), replacement=True, generator=generator)


def _whole(below: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw whole numbers from 0 to below - 1 on the generator's own device."""
    return torch.randint(below, shape, generator=generator, device=generator.device)


def flip(x: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right those images [B, channels, H, W] where ``mirrored`` (bool [B]) says so."""
    return torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(3), x)


def crop(x: Tensor, corner: Tensor, padding: int) -> Tensor:
    """Pad images [B, channels, H, W] with zeros and cut a window of the old size out of each.

    Args:
        x: The images.
        corner: int64 [2, B]: top and left of each window in the padded image, 0 to 2 x padding.
        padding: Pixels added on every side.
    """
    height, width = x.shape[2:]
    windows = functional.pad(x, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    top, left = corner.to(x.device)
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def rotate(x: Tensor, degrees: Tensor, between: str = "bilinear") -> Tensor:
    """Rotate images [B, channels, H, W] counter-clockwise about their centres, by ``degrees`` [B]."""
    height, width = x.shape[2:]
    radians = torch.deg2rad(degrees.to(x.device, x.dtype))
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # The grid runs from -1 to 1 on both axes: the ratio keeps the rotation rigid where H and W differ.
    theta = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1)
    grid = functional.affine_grid(theta.view(-1, 2, 3), list(x.shape), align_corners=False)
    turned = functional.grid_sample(x, grid, mode=between, padding_mode="zeros", align_corners=False)
    # grid_sample returns strides of its own choice.
    return turned if turned.stride() == x.stride() else torch.empty_like(x).copy_(turned)


def cutout(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """Set a square of images [B, channels, H, W] to zero; the border cuts what lies outside.

    Args:
        x: The images.
        centre: int64 [2, B]: row and column of each square's centre.
        side: Pixels a side.
    """
    first = centre.to(x.device)[:, :, None] - side // 2
    rows, columns = (
        (line >= start) & (line < start + side)
        for start, line in zip(first, (torch.arange(n, device=x.device) for n in x.shape[2:]), strict=True)
    )
    # clone keeps the strides, which ``where`` does not for a single channel.
    return x.clone().masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)
