"""The first stage of Faster R-CNN: where anything is, whatever its class.

Ren, He, Girshick, Sun 2015, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
arXiv 1506.01497, section 3.1, on a feature pyramid. An anchor is an object's from an IoU of 0.7 on (or if no
other overlaps the object more) and background below 0.3. The loss of an image is that of up to 256 anchors
drawn, at most half of them an object's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import nms

from fedvision.models.detection.anchored import box_losses, shapes
from fedvision.models.detection.geometry import BACKGROUND, anchors, clipped, decoded, matched, places
from fedvision.models.detection.heads import rows, small, tower
from fedvision.models.detection.outputs import Truth
from fedvision.models.pyramid import Pyramid

_DRAWN, _OF_OBJECTS = 256, 0.5
_OVERLAP = 0.7
"""IoU above which a proposal is dropped beside a better one."""
_CANDIDATES = 1000


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """What the first stage says of B images."""

    logits: torch.Tensor
    """[B, P]: whether an anchor is an object's."""
    deltas: torch.Tensor
    """[B, P, 4], boxes as ``geometry.encoded`` has them."""
    around: torch.Tensor
    """The anchors [P, 4]."""
    size: tuple[int, int]
    """(H, W) of the images."""

    def losses(self, truth: Truth, drawn: torch.Tensor) -> torch.Tensor:
        """Return the loss of each image [B]: of what was drawn, divided by how much that is.

        Args:
            truth: The objects.
            drawn: Numbers [B, P] by which anchors are drawn, the lowest first.
        """
        found = matched(truth.corners, truth.present, self.around, above=0.7, below=0.3)
        objects, background = sampled(found, drawn, _DRAWN, _OF_OBJECTS)
        counted = objects | background
        each = F.binary_cross_entropy_with_logits(self.logits.float(), objects.float(), reduction="none")
        own = found.masked_fill(~objects, BACKGROUND)
        boxes = box_losses(self.deltas, self.around, truth, own, beta=1 / 9)
        return ((each * counted).sum(1) + boxes) / counted.sum(1).clamp(min=1)

    @torch.no_grad()
    def boxes(self, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best boxes of each image, of those that overlap the best one.

        Returns:
            Corners [B, n, 4], n at most ``most``, and which of them there are, bool [B, n].
        """
        corners = clipped(decoded(self.deltas.float(), self.around), self.size)
        kept = []
        for own, logits in zip(corners, self.logits.float(), strict=True):
            best, where = logits.topk(min(_CANDIDATES, len(logits)))
            wide = ((own[where, 2:] - own[where, :2]) >= 1).all(1)
            where, best = where[wide], best[wide]
            kept.append(own[where[nms(own[where], best, _OVERLAP)[:most]]])
        longest = max([1, *map(len, kept)])
        result = corners.new_zeros((len(kept), longest, 4))
        for row, own in zip(result, kept, strict=True):
            row[: len(own)] = own
        counts = torch.tensor([len(own) for own in kept], device=corners.device)
        return result, torch.arange(longest, device=corners.device) < counts[:, None]


class ProposalHead(nn.Module):
    """A tower that all maps share, then for each anchor of a place a logit and a box."""

    sides: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("sides", shapes((1.0,), (0.5, 1.0, 2.0)), persistent=False)
        self.tower = tower(channels, 1)
        self.logits = small(nn.Conv2d(channels, len(self.sides), 1))
        self.deltas = small(nn.Conv2d(channels, 4 * len(self.sides), 1))

    def forward(self, pyramid: Pyramid) -> Proposals:
        """Return what all anchors say."""
        seen = [self.tower(one) for one in pyramid.maps]
        return Proposals(
            logits=rows([self.logits(one) for one in seen], 1).squeeze(-1),
            deltas=rows([self.deltas(one) for one in seen], 4),
            around=anchors(places(pyramid.maps, pyramid.size), self.sides),
            size=pyramid.size,
        )


def sampled(
    found: torch.Tensor, drawn: torch.Tensor, number: int, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw anchors of each image: of objects at most a share, then of background until there are enough.

    Args:
        found: int64 [B, P], as ``geometry.matched`` returns it.
        drawn: Numbers [B, P] by which they are drawn, the lowest first.
        number: How many in all, at most.
        share: Of objects, at most.

    Returns:
        Which are drawn of objects, and which of background: bool [B, P].
    """
    objects = _lowest(drawn, found >= 0, torch.full_like(found[:, 0], int(share * number)))
    background = _lowest(drawn, found == BACKGROUND, number - objects.sum(1))
    return objects, background


def _lowest(drawn: torch.Tensor, among: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return where the n lowest of each row [B, P] are among some of it, n [B]."""
    order = drawn.masked_fill(~among, torch.inf).argsort(dim=1, stable=True)
    places = torch.arange(drawn.shape[1], device=drawn.device).expand_as(order).contiguous()
    return (torch.empty_like(order).scatter_(1, order, places) < numbers[:, None]) & among


def draws(shape: tuple[int, int], device: torch.device, training: bool) -> torch.Tensor:
    """Return numbers [B, P] to draw by: random in training, from torch's global stream.

    In measurement they are fractions of multiples of the golden ratio, the same for each image, so that what
    is measured is the same each time.
    """
    if training:
        return torch.rand(shape, device=device)
    steps = torch.arange(1, shape[1] + 1, device=device, dtype=torch.float32)
    return (steps * 0.6180339887 % 1).expand(shape)
