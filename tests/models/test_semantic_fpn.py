"""Segmentation on a feature pyramid: its shapes, what its maps are added up to, and a frozen backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.config import ModelConfig
from fedvision.models.base import ImageModel
from fedvision.models.build import build_model
from fedvision.models.pyramid import Pyramid
from fedvision.models.semantic_fpn import SemanticHead
from fedvision.tasks.segmentation import Segmentation


def build(size: tuple[int, int] = (32, 32), channels: int = 3, **keys: Any) -> nn.Module:
    args = {"backbone": {"use": "resnet8", "width": 8}, "channels": 8, "width": 8, **keys}
    return build_model(
        ModelConfig(use="semantic-fpn", args=args),
        task=Segmentation(),
        num_classes=3,
        in_channels=channels,
        image_size=size,
        seed=0,
    )


@pytest.mark.parametrize("size", [(32, 32), (48, 36), (33, 41)], ids=str)
def test_every_parameter_learns_from_every_size(size: tuple[int, int]) -> None:
    model = build(size)
    logits = model(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (2, 3, *size)
    F.cross_entropy(logits, torch.randint(3, (2, *size))).backward()
    for name, parameter in model.named_parameters():
        assert name.startswith(("backbone.", "head."))
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["torchvision/resnet18", "efficientnet-lite0"])
def test_any_network_of_images_is_its_backbone(backbone: str) -> None:
    model = build((64, 64), 1, backbone=backbone)
    assert isinstance(model, ImageModel)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 3, 64, 64)


class _Add(nn.Module):
    """Stands for a convolution: adds one, so that steps can be counted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_maps_are_brought_to_the_finest_one_and_added_up() -> None:
    """A map of level k passes k convolutions and is enlarged after each, the finest passes one."""
    head = SemanticHead(1, 1, 3, 1)
    assert [len(branch) for branch in head.branches] == [1, 1, 2]
    for branch in head.branches:
        for step in range(len(branch)):
            branch[step] = _Add()
    head.logits = nn.Identity()
    maps = tuple(torch.full((1, 1, side, side), value) for side, value in ((8, 1.0), (4, 10.0), (2, 100.0)))
    found = head(Pyramid(maps, (16, 16)))
    assert found.shape == (1, 1, 16, 16)
    assert torch.allclose(found, torch.tensor(1.0 + 1 + 10 + 1 + 100 + 2))
