"""SSDLite: anchors with a softmax over classes and background, predicted by depthwise convolutions.

Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg 2016, "SSD: Single Shot MultiBox Detector", arXiv 1512.02325,
with the layers of Sandler et al. 2018, "MobileNetV2", arXiv 1801.04381, section 6.2. Of the anchors without
object those of the highest loss count, three for each that is an object's (hard negative mining). Here maps
are those of a feature pyramid, group norm takes the place of batch norm, and all maps have a layer in common;
losses are per image, divided by the anchors that are an object's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedvision.models.detection.anchored import WEIGHTS, box_losses, shapes
from fedvision.models.detection.detector import Detector
from fedvision.models.detection.geometry import anchors, decoded, matched, of_boxes, places
from fedvision.models.detection.heads import rows, separable
from fedvision.models.detection.outputs import Detections, DetectorOutput, Settings, Truth
from fedvision.models.detection.selection import selected
from fedvision.models.pyramid import Pyramid, build_backbone
from fedvision.types import HeadForm, LossFn

_RATIOS = (1.0, 2.0, 0.5, 3.0, 1 / 3)
_NEGATIVES = 3
"""Anchors without object that count, for each that is an object's; as many where an image has none."""


def ssdlite(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    backbone: str | Mapping[str, Any] = "resnet8",
    layers: Sequence[str] = (),
    channels: int = 64,
    levels: int = 0,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.5,
) -> nn.Module:
    """Build the network, images [B, in_channels, H, W] -> ``DetectorOutput`` with a softmax and background.

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W).
        backbone: As of ``fcos.fcos``, as are all further keys.
        layers: Layers of the backbone that are read.
        channels: Width of the pyramid and of the head.
        levels: Maps of the pyramid.
        score_threshold: Boxes of a lower score are dropped.
        nms_threshold: IoU above which a box is dropped beside a better one of its class.

    Raises:
        ValueError: A key is out of range.
        ConfigError: The backbone cannot be built.
    """
    settings = Settings(score_threshold=score_threshold, nms_threshold=nms_threshold)
    found = build_backbone(backbone, in_channels, image_size, channels=channels, levels=levels, layers=layers)
    return Detector(found, SsdLiteHead(channels, num_classes, settings))


class SsdLiteHead(nn.Module):
    """Two depthwise separable layers that all maps share."""

    sides: torch.Tensor
    weights: torch.Tensor

    def __init__(self, channels: int, num_classes: int, settings: Settings) -> None:
        super().__init__()
        self.num_classes, self.settings = num_classes, settings
        sides = torch.cat([shapes((1.0,), _RATIOS), shapes((2**0.5,), (1.0,))])
        self.register_buffer("sides", sides, persistent=False)
        self.register_buffer("weights", torch.tensor(WEIGHTS), persistent=False)
        self.logits = separable(channels, len(sides) * (num_classes + 1))
        self.deltas = separable(channels, len(sides) * 4)

    def forward(self, pyramid: Pyramid) -> SsdLiteOutput:
        """Return what all anchors say."""
        return SsdLiteOutput(
            logits=rows([self.logits(one) for one in pyramid.maps], self.num_classes + 1),
            deltas=rows([self.deltas(one) for one in pyramid.maps], 4) / self.weights,
            weights=self.weights,
            around=anchors(places(pyramid.maps, pyramid.size), self.sides),
            size=pyramid.size,
            settings=self.settings,
        )


class SsdLiteOutput(DetectorOutput):
    """What SSDLite says of P anchors of B images.

    Args:
        logits: [B, P, C + 1], the background last.
        deltas: [B, P, 4], boxes as ``geometry.encoded`` has them.
        weights: [4], by which these are multiplied in the loss.
        around: The anchors [P, 4].
        size: (H, W) of the images.
        settings: How they become detections.
    """

    form: HeadForm = "softmax"

    def __init__(
        self,
        logits: torch.Tensor,
        deltas: torch.Tensor,
        weights: torch.Tensor,
        around: torch.Tensor,
        size: tuple[int, int],
        settings: Settings,
    ) -> None:
        self.logits, self.deltas, self.around = logits, deltas, around
        self.weights, self.size, self.settings = weights, size, settings

    def losses(self, truth: Truth, criterion: LossFn) -> torch.Tensor:
        """Return, of each image, the sums over anchors that count, divided by those that are an object's."""
        found = matched(truth.corners, truth.present, self.around, above=0.5, below=0.5)
        objects = found >= 0
        background = self.logits.shape[2] - 1
        labels = of_boxes(truth.classes, found).masked_fill(~objects, background)
        each = criterion(self.logits.float(), labels)
        own = objects.sum(1)
        counted = objects | _hardest(each.detach().masked_fill(objects, -1), _NEGATIVES * own.clamp(min=1))
        boxes = box_losses(self.deltas, self.around, truth, found, beta=1.0, weights=self.weights)
        return ((each * counted).sum(1) + boxes) / own.clamp(min=1)

    def detections(self) -> Detections:
        """Return detections whose score is the probability of their class."""
        corners = decoded(self.deltas.float(), self.around)
        return selected(corners, self.logits.float().softmax(-1)[..., :-1], self.size, self.settings)


def _hardest(losses: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return where the n highest of each row [B, P] are, n [B]; negative ones are none."""
    order = losses.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(losses.shape[1], device=losses.device).expand_as(order).contiguous()
    )
    return (rank < numbers[:, None]) & (losses >= 0)
