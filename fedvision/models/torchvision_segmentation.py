"""torchvision's networks for semantic segmentation as backbone and head: logits of each pixel.

DeepLabV3 (Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv
1706.05587), FCN (Long et al. 2015, arXiv 1411.4038) and LR-ASPP (Howard et al. 2019, "Searching for
MobileNetV3", arXiv 1905.02244). The head is what makes logits of features, and their enlargement to the
image's size; the backbone is all before it. The auxiliary classifier, which only training from scratch uses,
is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.errors import PluginError
from fedvision.models.base import ImageModel, LibraryNames
from fedvision.models.dense import Enlarged
from fedvision.models.pretrained import Preprocessing, Published, digest_in, download

_REFUSED = ("progress", "weights_backbone", "aux_loss")
_LRASPP = "lraspp"


def names() -> list[str]:
    """Return the names of torchvision's networks for segmentation."""
    from torchvision import models

    found: list[str] = models.list_models(module=models.segmentation)
    return found


def torchvision_segmentation(
    *, name: str, num_classes: int, image_size: tuple[int, int], **keys: Any
) -> ImageModel:
    """Build any of torchvision's networks for segmentation; other keys go to its constructor.

    All have batch norm, whose statistics follow each client's own images.

    Args:
        name: Its name in ``torchvision.models``.
        num_classes: C.
        image_size: (H, W).
        keys: Keywords of its constructor.

    Raises:
        PluginError: A key is not for the experiment to set.
    """
    from torchvision import models

    if refused := [key for key in _REFUSED if key in keys]:
        raise PluginError(
            f"[model] use = 'torchvision-segmentation/{name}': it takes no key {refused[0]!r}; see "
            "model.weights"
        )
    if not name.startswith(_LRASPP):
        keys = {**keys, "aux_loss": False}
    network = models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes, **keys)
    if name.startswith(_LRASPP):
        low, high = network.classifier.low_classifier, network.classifier.high_classifier
        head: nn.Module = _TwoMaps(low, high)
        backbone: nn.Module = _Lraspp(network)
        heads = {f"classifier.{one}_classifier.": f"head.logits.{one}." for one in ("low", "high")}
    else:
        last = len(network.classifier) - 1
        head, backbone = network.classifier[last], _Map(network)
        network.classifier[last] = nn.Identity()
        heads = {f"classifier.{last}.": "head.logits."}
    library = LibraryNames(head=heads, training_only=("aux_classifier.",), mark="classifier.")
    return ImageModel(backbone, Enlarged(head, image_size, image_size), library=library)


class _Map(nn.Module):
    """DeepLabV3 or FCN without the convolution that makes logits, images -> features [B, D, h, w]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = network.backbone
        self.classifier: nn.Module = network.classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        features: torch.Tensor = self.classifier(self.backbone(images)["out"])
        return features


class _Lraspp(nn.Module):
    """LR-ASPP without its two classifiers, images -> low and high features side by side [B, D, h, w]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = network.backbone
        self.classifier: Any = network.classifier
        self.classifier.low_classifier = self.classifier.high_classifier = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        maps = self.backbone(images)
        low, high = maps["low"], maps["high"]
        found = self.classifier.cbr(high) * self.classifier.scale(high)
        larger = F.interpolate(found, size=low.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([low, larger], dim=1)


class _TwoMaps(nn.Module):
    """LR-ASPP's two classifiers, whose logits are added up."""

    def __init__(self, low: nn.Conv2d, high: nn.Conv2d) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        low, high = features.split([self.low.in_channels, self.high.in_channels], dim=1)  # type: ignore[no-untyped-call]
        logits: torch.Tensor = self.low(low) + self.high(high)
        return logits


def published(name: str) -> Mapping[str, Published]:
    """Return torchvision's weights for a network, such as ``COCO_WITH_VOC_LABELS_V1``, by their name."""
    from torchvision import models

    return {
        member.name: Published(
            preprocessing=_preprocessing(member.transforms()),
            locate=partial(download, member.url),
            digest=digest_in(member.url.rpartition("/")[2]),
        )
        for member in models.get_model_weights(name)  # DEFAULT is another name of one, and changes
    }


def _preprocessing(preset: Any) -> Preprocessing:
    # The shorter side had this size in training, and crops of another one were cut out.
    return Preprocessing(
        mean=tuple(preset.mean), std=tuple(preset.std), size=0, interpolation=preset.interpolation.value
    )
