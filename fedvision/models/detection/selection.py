"""From boxes and scores of all places to detections: threshold, best candidates, suppression."""

from __future__ import annotations

import torch
from torchvision.ops import batched_nms

from fedvision.models.detection.geometry import clipped
from fedvision.models.detection.outputs import Detections, Settings


def selected(
    corners: torch.Tensor, scores: torch.Tensor, size: tuple[int, int], settings: Settings
) -> Detections:
    """Return the detections of B images.

    Of an image the boxes of the highest scores are looked at, each class of a place by itself; of boxes of
    one class that overlap the best one stays (greedy non-maximum suppression).

    Args:
        corners: [B, P, 4], or of each class [B, P, C, 4].
        scores: [B, P, C], from 0 to 1.
        size: (H, W) of the images.
        settings: Thresholds and numbers.
    """
    corners, scores = clipped(corners.detach().float(), size), scores.detach().float()
    found = [_of_image(*one, settings) for one in zip(corners, scores, strict=True)]
    counts = torch.tensor([len(own) for _, own, _ in found], device=scores.device)
    most = max([1, *(len(own) for _, own, _ in found)])
    result = Detections(
        corners=corners.new_zeros((len(found), most, 4)),
        scores=scores.new_zeros((len(found), most)),
        classes=torch.zeros((len(found), most), dtype=torch.int64, device=scores.device),
        counts=counts,
    )
    for place, (boxes, own, classes) in enumerate(found):
        result.corners[place, : len(own)] = boxes
        result.scores[place, : len(own)] = own
        result.classes[place, : len(own)] = classes
    return result


def _of_image(
    corners: torch.Tensor, scores: torch.Tensor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    classes = scores.shape[1]
    flat = scores.flatten()
    best, where = flat.topk(min(settings.candidates, len(flat)))
    where = where[best > settings.score_threshold]
    place, label = where // classes, where % classes
    boxes = corners[place, label] if corners.dim() == 3 else corners[place]
    full = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    boxes, label, own = boxes[full], label[full], flat[where][full]
    kept = batched_nms(boxes, own, label, settings.nms_threshold)[: settings.most]
    return boxes[kept], own[kept], label[kept]
