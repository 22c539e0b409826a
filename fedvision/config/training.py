"""``[transforms]`` and ``[training]``: what a client does with its images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fedvision.tables import at_least, require, within
from fedvision.types import PluginSpec


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Normalisation and size of every image and augmentation of training batches."""

    mean: tuple[float, ...] = ()
    """Mean per channel of pixels scaled to 0..1; one number serves all channels, three show gray images as
    colour. Empty takes what ``model.weights`` were trained with, else 0.5."""
    std: tuple[float, ...] = ()
    """Standard deviation per channel of pixels scaled to 0..1, as ``mean``; empty takes what
    ``model.weights`` were trained with, else 0.25."""
    size: int = 0
    """Pixels a side to which images are resized on the device, after normalisation and before augmentation;
    others than square ones are stretched. 0 leaves them as they are."""
    interpolation: Literal["", "bilinear", "bicubic", "nearest"] = ""
    """How ``size`` finds values between pixels, the first two with antialiasing; empty takes what
    ``model.weights`` were trained with, else ``bilinear``."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""
    crop: int = 0
    """Pad by this many pixels of the colour ``mean``, then crop at random to the old size."""
    rotation: float = 0.0
    """Rotate by a random angle of at most this many degrees; corners get the colour ``mean``."""
    cutout: int = 0
    """Give a random square of this many pixels a side the colour ``mean``."""
    mixup: float = 0.0
    """Beta parameter of mixup; 0 switches it off."""
    mixup_partner: Literal["random", "balanced"] = "random"
    """With whom mixup blends an image: any other of the batch; or one of each class in the batch equally
    often, whose share is drawn from Beta(mixup, 1), small for a small ``mixup`` (arXiv 2109.09850)."""
    views: int = 0
    """Behind frozen layers: augmented views of each image whose features are computed once; training
    draws one of them for each image of a step. At 0 augmentation is drawn anew, and nothing is kept."""

    def __post_init__(self) -> None:
        # Statistics of pixels from 0 to 255, as some tables print them, are above 1 but for black images.
        bounds = {"mean": "from 0 to 1", "std": "above 0, at most 1"}
        for name, values in (("mean", self.mean), ("std", self.std)):
            low = all(value > 0 if name == "std" else value >= 0 for value in values)
            require(
                low and all(value <= 1 for value in values),
                f"transforms.{name}",
                f"must hold numbers {bounds[name]}, one per channel or one for all, not {list(values)}; "
                "pixels are scaled to 0..1 first, so divide by 255 what was measured on pixels to 255",
            )
        at_least(0, self, "transforms.", "size", "crop", "cutout", "views")
        within(0, 180, self, "transforms.", "rotation")
        within(0, 1000, self, "transforms.", "mixup")
        require(
            self.mixup > 0 or self.mixup_partner == "random",
            "transforms.mixup_partner",
            f"is {self.mixup_partner!r} and transforms.mixup is 0, which blends nothing; set mixup = 0.2, or "
            "leave the partner out",
        )
        require(not (self.views and self.mixup), "transforms.mixup", "must be 0 where there are views")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Local training on a client."""

    optimizer: PluginSpec = field(default_factory=lambda: PluginSpec(use="sgd"))
    """Any optimiser of ``torch.optim`` by name, or a table ``{ use = "adamw", betas = [0.9, 0.99] }``."""
    lr: float = 0.05
    """Learning rate of round 1."""
    schedule: PluginSpec = field(default_factory=lambda: PluginSpec(use="constant"))
    """Learning rate over rounds: ``constant``, ``cosine``, ``step``, ``exponential``, or a table."""
    sampler: PluginSpec = field(default_factory=lambda: PluginSpec(use="shuffle"))
    """Which of the client's images an epoch takes, as many as it has: ``shuffle``, each once; ``balanced``,
    ``square-root``, ``effective`` or ``progressive``, rare classes more often; a table, or
    ``"module:attr"``."""
    epochs: int = 1
    """Passes over the client's images a round."""
    steps: int = 0
    """Optimiser steps a round instead of epochs; 0 counts epochs."""
    batch_size: int = 32
    """Images a step."""
    accumulate: int = 1
    """Parts of about equal size in which a step's images go through the network one after the other, to save
    memory; their gradients add up to those of all at once. Batch norm measures each part by itself, and parts
    have two images or more where it needs them; dropout draws in another order."""
    checkpoint_activations: bool = False
    """Keep of each of a backbone's blocks its input alone and compute the rest anew in the backward pass: the
    same bits with less memory and a second forward pass (arXiv 1604.06174)."""
    compile: bool = False
    """Let ``torch.compile`` make kernels for the network: pays off in long runs of large networks. Results
    differ by rounding."""
    momentum: float = 0.0
    """Momentum, for optimisers that have it."""
    weight_decay: float = 0.0
    """Weight decay."""
    clip_norm: float = 0.0
    """Largest norm of a step's gradient; 0 does not clip."""
    device: str = "auto"
    """``auto`` (cuda, then mps, then cpu) or a torch device."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the forward pass; float16 scales the loss on cuda. On a CPU that computes in it, bfloat16
    took 0.75 of a step's time for the CNN."""
    channels_last: bool = True
    """Lay images out as [B, H, W, channels] in memory: 0.74 of a step's time for the CNN on a CPU."""
    cache_features: bool = True
    """Where layers are frozen before the first trained one (``model.train = "head"`` or ``"last:N"``, or
    ``train = "none"`` of a pyramid's backbone) and no augmentation is drawn, pass each image through them
    once and train the rest on what they make of it: in the folder of decoded images, 4 bytes for each number,
    20 GB at most."""

    def __post_init__(self) -> None:
        at_least(1, self, "training.", "epochs", "batch_size", "accumulate")
        require(0 < self.lr < math.inf, "training.lr", f"must be > 0, not {self.lr}")
        at_least(0, self, "training.", "steps", "weight_decay", "clip_norm")
        require(
            not (self.compile and self.checkpoint_activations),
            "training.compile",
            "cannot go with training.checkpoint_activations; set one of them to false",
        )
        require(0 <= self.momentum < 1, "training.momentum", f"must be >= 0 and < 1, not {self.momentum}")
