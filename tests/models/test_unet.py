"""The U-Net: logits of every pixel at any size, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.config import ModelConfig
from fedvision.errors import PluginError
from fedvision.models.base import ImageModel
from fedvision.models.build import build_model
from fedvision.models.unet import unet
from fedvision.tasks.segmentation import Segmentation


def build(size: tuple[int, int] = (16, 16), channels: int = 1, seed: int = 0, **keys: Any) -> nn.Module:
    args = {"width": 4, "depth": 2, **keys}
    return build_model(
        ModelConfig(use="unet", args=args),
        task=Segmentation(),
        num_classes=3,
        in_channels=channels,
        image_size=size,
        seed=seed,
    )


@pytest.mark.parametrize("size", [(4, 4), (16, 16), (13, 9), (20, 36), (5, 31)], ids=str)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_every_parameter_learns_from_every_size(size: tuple[int, int], norm: str) -> None:
    model = build(size, 3, norm=norm)
    logits = model(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (2, 3, *size)
    F.cross_entropy(logits, torch.randint(3, (2, *size))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_it_is_its_head_after_its_backbone() -> None:
    model = build()
    assert isinstance(model, ImageModel)
    x = torch.randn(2, 1, 16, 16)
    features = model.backbone(x)
    assert features.shape == (2, 4, 16, 16)
    assert torch.equal(model(x), model.head(features))
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "head"}


def test_its_size_and_its_seed() -> None:
    whole = unet(num_classes=4, in_channels=1, image_size=(64, 64))
    assert sum(one.numel() for one in whole.parameters()) == 536_372
    first, again, other = (build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("keys", "size", "problem"),
    [
        ({"width": 5}, (16, 16), "groups = 2 does not divide width = 5"),
        ({"depth": 5}, (16, 16), "depth = 5 halves images of 16 x 16 to nothing"),
        ({"norm": "layer"}, (16, 16), "norm must be one of 'group', 'batch'"),
        ({"dropout": 1.0}, (16, 16), "dropout must be >= 0 and < 1"),
        ({"width": 0}, (16, 16), "width must be >= 1"),
    ],
)
def test_keys_out_of_range(keys: dict[str, Any], size: tuple[int, int], problem: str) -> None:
    with pytest.raises(PluginError, match=problem):
        build(size, **keys)
