"""RetinaNet: nine anchors at each place of a feature pyramid, a sigmoid for each class and anchor.

Lin, Goyal, Girshick, He, Dollar 2017, "Focal Loss for Dense Object Detection", arXiv 1708.02002. An anchor is
for the object that it overlaps by an IoU of 0.5 or more (or most of all anchors), background below 0.4, and
counts for nothing between. Losses are per image, each divided by the anchors that are an object's, boxes by
L1, as in torchvision's form. The loss of the paper is ``[loss] use = "sigmoid-focal"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.detection.anchored import box_losses, shapes
from fedvision.models.detection.detector import Detector
from fedvision.models.detection.geometry import BETWEEN, anchors, decoded, matched, of_boxes, places
from fedvision.models.detection.heads import prior_bias, rows, small, tower
from fedvision.models.detection.outputs import Detections, DetectorOutput, Settings, Truth
from fedvision.models.detection.selection import selected
from fedvision.models.pyramid import Pyramid, build_backbone
from fedvision.ranges import check_range
from fedvision.types import HeadForm, LossFn

_SCALES, _RATIOS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0)


def retinanet(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    backbone: str | Mapping[str, Any] = "resnet8",
    layers: Sequence[str] = (),
    channels: int = 64,
    levels: int = 0,
    depth: int = 2,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.5,
) -> nn.Module:
    """Build the network, images [B, in_channels, H, W] -> ``DetectorOutput`` with a sigmoid for each class.

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W).
        backbone: As of ``fcos.fcos``, as are all further keys.
        layers: Layers of the backbone that are read.
        channels: Width of the pyramid and of the head.
        levels: Maps of the pyramid.
        depth: Convolutions of each of the head's two towers, four in the paper.
        score_threshold: Boxes of a lower score are dropped.
        nms_threshold: IoU above which a box is dropped beside a better one of its class.

    Raises:
        ValueError: A key is out of range.
        ConfigError: The backbone cannot be built.
    """
    check_range(at_least=0, depth=depth)
    settings = Settings(score_threshold=score_threshold, nms_threshold=nms_threshold)
    found = build_backbone(backbone, in_channels, image_size, channels=channels, levels=levels, layers=layers)
    return Detector(found, RetinaNetHead(channels, num_classes, depth, settings))


class RetinaNetHead(nn.Module):
    """Two towers that all maps share: one tells classes, one boxes relative to the anchors."""

    sides: torch.Tensor

    def __init__(self, channels: int, num_classes: int, depth: int, settings: Settings) -> None:
        super().__init__()
        self.num_classes, self.settings = num_classes, settings
        self.register_buffer("sides", shapes(_SCALES, _RATIOS), persistent=False)
        self.class_tower, self.box_tower = tower(channels, depth), tower(channels, depth)
        count = len(self.sides)
        self.logits = small(nn.Conv2d(channels, count * num_classes, 3, padding=1), prior_bias())
        self.deltas = small(nn.Conv2d(channels, count * 4, 3, padding=1))

    def forward(self, pyramid: Pyramid) -> RetinaNetOutput:
        """Return what all anchors say."""
        return RetinaNetOutput(
            logits=rows([self.logits(self.class_tower(one)) for one in pyramid.maps], self.num_classes),
            deltas=rows([self.deltas(self.box_tower(one)) for one in pyramid.maps], 4),
            around=anchors(places(pyramid.maps, pyramid.size), self.sides),
            size=pyramid.size,
            settings=self.settings,
        )


class RetinaNetOutput(DetectorOutput):
    """What RetinaNet says of P anchors of B images.

    Args:
        logits: [B, P, C].
        deltas: [B, P, 4], boxes as ``geometry.encoded`` has them.
        around: The anchors [P, 4].
        size: (H, W) of the images.
        settings: How they become detections.
    """

    form: HeadForm = "sigmoid"

    def __init__(
        self,
        logits: torch.Tensor,
        deltas: torch.Tensor,
        around: torch.Tensor,
        size: tuple[int, int],
        settings: Settings,
    ) -> None:
        self.logits, self.deltas, self.around = logits, deltas, around
        self.size, self.settings = size, settings

    def losses(self, truth: Truth, criterion: LossFn) -> torch.Tensor:
        """Return, of each image, the sums over its anchors, divided by those that are an object's."""
        found = matched(truth.corners, truth.present, self.around, above=0.5, below=0.4)
        objects = found >= 0
        wanted = F.one_hot(of_boxes(truth.classes, found), self.logits.shape[2]) * objects[..., None]
        each = criterion(self.logits.float(), wanted.float())
        classes = each.masked_fill(found == BETWEEN, 0).sum(1)
        boxes = box_losses(self.deltas, self.around, truth, found, beta=0.0)
        return (classes + boxes) / objects.sum(1).clamp(min=1)

    def detections(self) -> Detections:
        """Return detections whose score is the probability of their class."""
        corners = decoded(self.deltas.float(), self.around)
        return selected(corners, self.logits.float().sigmoid(), self.size, self.settings)
