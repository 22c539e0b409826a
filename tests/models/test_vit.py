"""The Vision Transformer: its size by hand, and that every key arrives."""

from __future__ import annotations

import pytest
import torch

from fedvision.models.vit import vit


def build(**keys: object) -> torch.nn.Module:
    torch.manual_seed(0)
    small: dict[str, object] = {"patch": 4, "dim": 8, "depth": 2, "heads": 2}
    return vit(num_classes=3, in_channels=1, image_size=(8, 12), **{**small, **keys})  # type: ignore[arg-type]


def test_parameters_by_hand() -> None:
    block = 4 * (8 * 8 + 8) + 2 * 2 * 8 + (8 * 24 + 24) + (24 * 8 + 8)
    expected = (16 * 8 + 8) + 6 * 8 + 8 + 2 * block + 2 * 8 + (8 * 3 + 3)
    model = build(mlp_ratio=3.0)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("keys", [{}, {"pool": "mean"}, {"positional": "sine"}, {"patch": 2}])
def test_every_patch_reaches_the_logits(keys: dict[str, object]) -> None:
    model = build(**keys)
    images = torch.randn(1, 1, 8, 12, requires_grad=True)
    model(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.count_nonzero() == 8 * 12


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"patch = 3 does not divide an image of 8 x 12; .* is 2"):
        build(patch=3)
