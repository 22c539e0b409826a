"""FCOS: each place of a feature pyramid says which object it is in, and how far that object's borders are.

Tian, Shen, Chen, He 2019, "FCOS: Fully Convolutional One-Stage Object Detection", arXiv 1904.01355, with the
later form of Tian et al. 2020, arXiv 2006.09214: centre sampling and the GIoU loss (Rezatofighi et al. 2019,
arXiv 1902.09630). A place is an object's if it lies in its box and within 1.5 strides of the box's centre,
and if the farthest border is in the range of its map: a map of stride s takes distances from 4 s on to where
the next one begins, the finest from 0, the coarsest without end. Of several objects the smallest has it. What
differs:

- distances are ``stride exp(x)``, without a factor for each map;
- losses are per image, each divided by the places that are an object's in that image; theirs are divided by
  those of the batch, and boxes weighted by centre-ness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from fedvision.models.detection.detector import Detector
from fedvision.models.detection.geometry import BACKGROUND, Places, of_boxes, places
from fedvision.models.detection.heads import prior_bias, rows, small, tower
from fedvision.models.detection.outputs import Detections, DetectorOutput, Settings, Truth
from fedvision.models.detection.selection import selected
from fedvision.models.pyramid import Pyramid, build_backbone
from fedvision.ranges import check_range
from fedvision.types import HeadForm, LossFn

_RADIUS = 1.5
"""Strides from an object's centre within which a place is the object's."""
_REACH = 4.0
"""Strides of the farthest border from which on a place takes an object."""
_FARTHEST = 6.0
"""Largest exponent of a distance: 400 strides."""


def fcos(
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
    nms_threshold: float = 0.6,
) -> nn.Module:
    """Build the network, images [B, in_channels, H, W] -> ``DetectorOutput`` with a sigmoid for each class.

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W).
        backbone: Any network of images by its name or as a table ``{ use, weights, train }``.
        layers: Names of the backbone's layers whose maps are read, the finest first; left out, the last one
            of each size.
        channels: Width of the pyramid and of the head.
        levels: Maps of the pyramid; 0 finds how many the images need.
        depth: Convolutions of each of the head's two towers.
        score_threshold: Boxes of a lower score are dropped.
        nms_threshold: IoU above which a box is dropped beside a better one of its class.

    Raises:
        ValueError: A key is out of range.
        ConfigError: The backbone cannot be built.
    """
    check_range(at_least=0, depth=depth)
    settings = Settings(score_threshold=score_threshold, nms_threshold=nms_threshold)
    found = build_backbone(backbone, in_channels, image_size, channels=channels, levels=levels, layers=layers)
    return Detector(found, FcosHead(channels, num_classes, depth, settings))


class FcosHead(nn.Module):
    """Two towers that all maps share: one tells classes, one the borders and how central a place is."""

    def __init__(self, channels: int, num_classes: int, depth: int, settings: Settings) -> None:
        super().__init__()
        self.num_classes, self.settings = num_classes, settings
        self.class_tower, self.box_tower = tower(channels, depth), tower(channels, depth)
        self.logits = small(nn.Conv2d(channels, num_classes, 3, padding=1), prior_bias())
        self.distances = small(nn.Conv2d(channels, 4, 3, padding=1))
        self.centreness = small(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, pyramid: Pyramid) -> FcosOutput:
        """Return what all places say."""
        boxes = [self.box_tower(one) for one in pyramid.maps]
        return FcosOutput(
            logits=rows([self.logits(self.class_tower(one)) for one in pyramid.maps], self.num_classes),
            exponents=rows([self.distances(one) for one in boxes], 4),
            centreness=rows([self.centreness(one) for one in boxes], 1).squeeze(-1),
            places=places(pyramid.maps, pyramid.size),
            size=pyramid.size,
            settings=self.settings,
        )


class FcosOutput(DetectorOutput):
    """What FCOS says at P places of B images.

    Args:
        logits: [B, P, C].
        exponents: [B, P, 4]: logarithms of the distances to left, top, right and bottom border in strides.
        centreness: Logits [B, P] of how central a place is in its object.
        places: Where they are.
        size: (H, W) of the images.
        settings: How they become detections.
    """

    form: HeadForm = "sigmoid"

    def __init__(
        self,
        logits: torch.Tensor,
        exponents: torch.Tensor,
        centreness: torch.Tensor,
        places: Places,
        size: tuple[int, int],
        settings: Settings,
    ) -> None:
        self.logits, self.centreness = logits, centreness
        self.places, self.size, self.settings = places, size, settings
        distances = exponents.float().clamp(max=_FARTHEST).exp() * places.strides.repeat(1, 2)
        self.corners = torch.cat(
            [places.centres - distances[..., :2], places.centres + distances[..., 2:]], -1
        )

    def losses(self, truth: Truth, criterion: LossFn) -> torch.Tensor:
        """Return, of each image, the sums over its places, divided by the places that are an object's."""
        found = assigned(truth, self.places)
        objects = found >= 0
        wanted = F.one_hot(of_boxes(truth.classes, found), self.logits.shape[2]) * objects[..., None]
        classes = criterion(self.logits.float(), wanted.float()).sum(1)
        box = of_boxes(truth.corners, found)[objects]
        borders = objects.new_zeros(objects.shape, dtype=torch.float32)
        borders[objects] = generalized_box_iou_loss(self.corners[objects], box) + (
            F.binary_cross_entropy_with_logits(
                self.centreness.float()[objects],
                _centreness(self.places.centres.expand(len(objects), -1, -1)[objects], box),
                reduction="none",
            )
        )
        return (classes + borders.sum(1)) / objects.sum(1).clamp(min=1)

    def detections(self) -> Detections:
        """Return detections whose score is the geometric mean of the class's and the centre-ness."""
        scores = (self.logits.float().sigmoid() * self.centreness.float().sigmoid()[..., None]).sqrt()
        return selected(self.corners, scores, self.size, self.settings)


def assigned(truth: Truth, found: Places) -> torch.Tensor:
    """Return the object of each place: int64 [B, P], its number, or ``BACKGROUND``."""
    corners = truth.corners[:, None]  # [B, 1, M, 4]
    centres, strides = found.centres[:, None], found.strides[:, None]  # [P, 1, 2]
    to_borders = torch.cat([centres - corners[..., :2], corners[..., 2:] - centres], -1)  # [B, P, M, 4]
    middle = (corners[..., :2] + corners[..., 2:]) / 2
    central = ((centres - middle).abs() < _RADIUS * strides).all(-1)
    least, most = _ranges(found)
    farthest = to_borders.amax(-1)
    fits = (farthest > least[:, None]) & (farthest <= most[:, None])
    may = central & fits & (to_borders.amin(-1) > 0) & truth.present[:, None]
    side = truth.corners[..., 2:] - truth.corners[..., :2]
    area = side.prod(-1)[:, None].expand(may.shape).masked_fill(~may, torch.inf)
    smallest, number = area.min(2)
    return number.masked_fill(smallest.isinf(), BACKGROUND)


def _ranges(found: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """Return from above which distance of the farthest border to which one a place takes an object: two [P].

    A map's range ends where that of the next one begins, so that no object falls between maps.
    """
    first = (found.levels.diff(prepend=found.levels.new_tensor([-1])) > 0).nonzero().squeeze(1)
    begins = _REACH * found.strides[first].amax(1)
    begins[0] = 0
    ends = torch.cat([begins[1:], begins.new_tensor([torch.inf])])
    return begins[found.levels], ends[found.levels]


def _centreness(centres: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return ``sqrt(min(l, r) / max(l, r) min(t, b) / max(t, b))`` of places [n, 2] in boxes [n, 4]."""
    before, behind = centres - boxes[:, :2], boxes[:, 2:] - centres
    return (torch.minimum(before, behind) / torch.maximum(before, behind)).clamp(min=0).prod(1).sqrt()
