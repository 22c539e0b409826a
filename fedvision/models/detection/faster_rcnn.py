"""Faster R-CNN: a first stage proposes boxes, a second one says of each which class it has, and corrects it.

Ren, He, Girshick, Sun 2015, arXiv 1506.01497, on a feature pyramid (Lin et al. 2017, arXiv 1612.03144), with
RoIAlign (He et al. 2017, arXiv 1703.06870) as torchvision has it. In training the objects' own boxes are
among the proposals, and of each image 128 are drawn, a quarter of them for an object. What differs: one box
of a proposal serves all classes, as rare classes have too few objects to learn their own; and losses are per
image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from fedvision.models.detection.anchored import WEIGHTS, box_losses
from fedvision.models.detection.detector import Detector
from fedvision.models.detection.geometry import BACKGROUND, decoded, matched, of_boxes
from fedvision.models.detection.outputs import Detections, DetectorOutput, Settings, Truth
from fedvision.models.detection.proposals import ProposalHead, Proposals, draws, sampled
from fedvision.models.detection.selection import selected
from fedvision.models.init import glorot
from fedvision.models.pyramid import Pyramid, build_backbone
from fedvision.ranges import check_range
from fedvision.types import HeadForm, LossFn

_DRAWN, _OF_OBJECTS = 128, 0.25


def faster_rcnn(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    backbone: str | Mapping[str, Any] = "resnet8",
    layers: Sequence[str] = (),
    channels: int = 64,
    levels: int = 0,
    hidden: int = 256,
    pooled: int = 7,
    proposals: int = 300,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.5,
) -> nn.Module:
    """Build the network, images [B, in_channels, H, W] -> ``DetectorOutput`` with a softmax and background.

    Args:
        num_classes: C.
        in_channels: Channels of the images.
        image_size: (H, W).
        backbone: As of ``fcos.fcos``, as are all keys not named here.
        layers: Layers of the backbone that are read.
        channels: Width of the pyramid and of the first stage.
        levels: Maps of the pyramid.
        hidden: Units of the second stage's two layers.
        pooled: Side of the grid of places that are read from a proposal.
        proposals: Boxes of an image that the second stage looks at, at most.
        score_threshold: Boxes of a lower score are dropped.
        nms_threshold: IoU above which a box is dropped beside a better one of its class.

    Raises:
        ValueError: A key is out of range.
        ConfigError: The backbone cannot be built.
    """
    check_range(at_least=1, hidden=hidden, pooled=pooled, proposals=proposals)
    settings = Settings(score_threshold=score_threshold, nms_threshold=nms_threshold)
    found = build_backbone(backbone, in_channels, image_size, channels=channels, levels=levels, layers=layers)
    boxes = BoxHead(channels, num_classes, hidden, pooled)
    return Detector(found, FasterRcnnHead(ProposalHead(channels), boxes, proposals, settings))


class BoxHead(nn.Module):
    """The second stage: boxes on a pyramid -> logits with background, and a correction of each box."""

    weights: torch.Tensor

    def __init__(self, channels: int, num_classes: int, hidden: int, pooled: int) -> None:
        super().__init__()
        self.pooled = pooled
        self.register_buffer("weights", torch.tensor(WEIGHTS), persistent=False)
        self.first = glorot(nn.Linear(channels * pooled * pooled, hidden))
        self.second = glorot(nn.Linear(hidden, hidden))
        self.logits, self.deltas = nn.Linear(hidden, num_classes + 1), nn.Linear(hidden, 4)
        for layer, deviation in ((self.logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Pyramid, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [B, R, C + 1] and ``geometry.encoded`` numbers [B, R, 4] of boxes [B, R, 4]."""
        batch, count = boxes.shape[:2]
        seen = _read(pyramid, boxes, self.pooled).flatten(1)
        x = F.relu(self.second(F.relu(self.first(seen.to(self.first.weight.dtype)))))
        return self.logits(x).view(batch, count, -1), self.deltas(x).view(batch, count, 4) / self.weights


def _read(pyramid: Pyramid, boxes: torch.Tensor, pooled: int) -> torch.Tensor:
    """Return what a pyramid has in boxes [B, R, 4], [B R, channels, pooled, pooled].

    A box is read from the map of which it is 14 to 28 places large, smaller ones from the finest and larger
    ones from the coarsest.
    """
    height, width = pyramid.size
    image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
    flat = boxes.reshape(-1, 4)
    side = (flat[:, 2:] - flat[:, :2]).clamp(min=0).prod(1).sqrt()
    finest = math.sqrt(height * width / math.prod(pyramid.maps[0].shape[2:]))
    level = (side / (14 * finest)).clamp(min=1).log2().floor().clamp(max=len(pyramid.maps) - 1)
    channels = pyramid.maps[0].shape[1]
    found = pyramid.maps[0].new_zeros((len(flat), channels, pooled, pooled))
    for number, one in enumerate(pyramid.maps):
        mine = (level == number).nonzero().squeeze(1)
        scale = flat.new_tensor([one.shape[3] / width, one.shape[2] / height]).repeat(2)
        regions = torch.cat([image[mine, None].to(flat.dtype), flat[mine] * scale], 1).to(one.dtype)
        read = roi_align(one, regions, (pooled, pooled), sampling_ratio=2, aligned=True)
        found = found.index_copy(0, mine, read)
    return found


class FasterRcnnHead(nn.Module):
    """Both stages."""

    def __init__(self, first: ProposalHead, boxes: BoxHead, proposals: int, settings: Settings) -> None:
        super().__init__()
        self.proposals, self.boxes = first, boxes
        self.most, self.settings = proposals, settings

    def forward(self, pyramid: Pyramid) -> FasterRcnnOutput:
        """Return what the first stage says, and what is needed to go on."""
        return FasterRcnnOutput(self, pyramid, self.proposals(pyramid))


class FasterRcnnOutput(DetectorOutput):
    """What the first stage says; the second looks at boxes that depend on whether there are objects to learn.

    Args:
        head: The network's head, in the mode in which it was called.
        pyramid: The maps.
        first: What its first stage says.
    """

    form: HeadForm = "softmax"

    def __init__(self, head: FasterRcnnHead, pyramid: Pyramid, first: Proposals) -> None:
        self.head, self.pyramid, self.first = head, pyramid, first
        self.training = head.training
        self.logits = first.logits[..., None]

    def losses(self, truth: Truth, criterion: LossFn) -> torch.Tensor:
        """Return, of each image, the losses of both stages, each divided by what was drawn for it."""
        device = truth.corners.device
        keys = draws((len(truth.corners), self.first.logits.shape[1]), device, self.training)
        first = self.first.losses(truth, keys)
        boxes, there = self.first.boxes(self.head.most)
        boxes, there = torch.cat([truth.corners, boxes], 1), torch.cat([truth.present, there], 1)
        found = matched(truth.corners, truth.present, boxes, above=0.5, below=0.5, best_of_each=False)
        keys = draws((len(boxes), boxes.shape[1]), device, self.training).masked_fill(~there, torch.inf)
        objects, background = sampled(found.masked_fill(~there, -3), keys, _DRAWN, _OF_OBJECTS)
        # As many for each image: those that were drawn come first, what fills them up counts for nothing.
        order = (~(objects | background)).to(torch.int8).argsort(dim=1, stable=True)[:, :_DRAWN]
        chosen, own = of_boxes(boxes, order), found.gather(1, order)
        objects, counted = objects.gather(1, order), (objects | background).gather(1, order)
        logits, deltas = self.head.boxes(self.pyramid, chosen)
        labels = of_boxes(truth.classes, own).masked_fill(~objects, logits.shape[2] - 1)
        each = criterion(logits.float(), labels) * counted
        own = own.masked_fill(~objects, BACKGROUND)
        corrections = box_losses(deltas, chosen, truth, own, beta=1 / 9, weights=self.head.boxes.weights)
        return first + (each.sum(1) + corrections) / counted.sum(1).clamp(min=1)

    @torch.no_grad()
    def detections(self) -> Detections:
        """Return the second stage's boxes of the first one's, scored by the probability of their class."""
        boxes, there = self.first.boxes(self.head.most)
        logits, deltas = self.head.boxes(self.pyramid, boxes)
        scores = logits.float().softmax(-1)[..., :-1] * there[..., None]
        return selected(decoded(deltas.float(), boxes), scores, self.pyramid.size, self.head.settings)
