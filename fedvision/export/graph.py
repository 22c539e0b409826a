"""What an exported file computes, as one module: pixels of any size in, probabilities out.

Everything that ``TrainedModel.predict`` does is inside: the size, the transforms' normalisation and resize,
the network, the scale of the logits and what the task makes of them. Constants become buffers; the arithmetic
is float32 whatever the run measured in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedvision.export.resampling import Fit, FixedResize, PillowResize
from fedvision.inputs import Inputs, width

if TYPE_CHECKING:
    from fedvision.trained_model import TrainedModel


class PredictionGraph(nn.Module):
    """Images uint8 [N, H, W, channels] -> probabilities float32 [N, C].

    Args:
        model: The trained model.
        fit: How images of another size become those that the network takes.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: TrainedModel, fit: Fit) -> None:
        super().__init__()
        image, transforms = model.description.image, model.description.transforms
        self.size, self.fit = (image.height, image.width), fit
        self.image_channels = image.channels
        self.further = width(model.description.model.inputs)
        self.fitted = PillowResize(self.size, fit)
        scale, shift = model.settings.transform.constants()
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("shift", shift.view(-1, 1, 1))
        resized = transforms.size and self.size != (transforms.size, transforms.size)
        self.resized = (
            FixedResize(self.size, transforms.size, transforms.interpolation) if resized else nn.Identity()
        )
        self.network = model.network
        self.task, self.classes = model.task, len(model.classes)
        self.sharpness = model.description.probability_scale

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Return which dimensions of its inputs are free, as ``torch.export`` takes them."""
        free = torch.export.Dim.DYNAMIC
        images = {0: free} if self.fit == "exact" else {0: free, 1: free, 2: free}
        return (images, {0: free}) if self.further else (images,)

    def example(self) -> tuple[Tensor, ...]:
        """Return a batch of inputs to trace with; no two of its sizes are equal."""
        height, width = self.size
        if self.fit != "exact":
            height, width = 2 * height + 3, 2 * width + 7
        images = torch.zeros(3, height, width, self.image_channels, dtype=torch.uint8)
        return (images, torch.full((3, self.further), torch.nan)) if self.further else (images,)

    def forward(self, images: Tensor, further: Tensor | None = None) -> Tensor:
        """Return the probabilities.

        Args:
            images: uint8 [N, H, W, channels].
            further: float32 [N, W] of a network that reads columns beside pixels, NaN where absent.
        """
        x = self.fitted(images.permute(0, 3, 1, 2).to(torch.float32))
        x = x * self.scale + self.shift  # gray becomes colour where there are constants for three channels
        x = self.resized(x)
        outputs = self.network(x if further is None else Inputs(x, further))
        found: Tensor = self.task.decide(self.task.measured(outputs, self.classes, self.sharpness))[1]
        return found
