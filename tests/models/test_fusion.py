"""Fusion: both branches count, for every join and extractor; a frozen one stays as it is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.base import ImageModel
from fedvision.models.cnn import cnn
from fedvision.models.fusion import FusionBackbone, fusion
from fedvision.models.fusion_modes import JOINS, Concat, CrossAttention, Gated

EXTRACTORS = ("cnn", "rnn", "resnet8", "resnet18", "resnet20")
EVERY = list(itertools.product(sorted(JOINS), EXTRACTORS, (0, 4)))


def build(**keys: Any) -> tuple[ImageModel, FusionBackbone]:
    torch.manual_seed(0)
    small: dict[str, Any] = {"width": 4, "dim": 8, "depth": 1, "heads": 2}
    model = fusion(num_classes=3, in_channels=1, image_size=(8, 8), **{**small, **keys})
    assert isinstance(model, ImageModel)
    assert isinstance(model.backbone, FusionBackbone)
    return model, model.backbone


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("join", "extractor", "patch"), EVERY)
@pytest.mark.parametrize("branch", [0, 1], ids=["extractor", "transformer"])
def test_each_branch_changes_the_logits(join: str, extractor: str, patch: int, branch: int) -> None:
    model, backbone = build(join=join, extractor=extractor, patch=patch)
    before = model(images())

    def silence(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(x.zero_() if i == branch else x for i, x in enumerate(x.clone() for x in inputs))

    backbone.join.register_forward_pre_hook(silence)
    assert (model(images()) - before).abs().max() > 1e-3


@pytest.mark.parametrize(("join", "extractor", "patch"), EVERY)
def test_each_branch_learns(join: str, extractor: str, patch: int) -> None:
    model, backbone = build(join=join, extractor=extractor, patch=patch)
    F.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0])).backward()
    for branch in (backbone.extractor, backbone.transformer, backbone.join, model.head):
        grads = [p.grad for p in branch.parameters()]
        assert all(grad is not None for grad in grads)
        assert max(float(grad.abs().max()) for grad in grads if grad is not None) > 1e-5


def test_patches_make_the_transformer_independent_of_the_extractor() -> None:
    def class_tokens(patch: int) -> list[torch.Tensor]:
        (model, backbone), seen = build(patch=patch), []
        backbone.transformer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        model(images())
        nn.init.zeros_(backbone.extractor.conv3.weight)  # type: ignore[union-attr, arg-type]
        model(images())
        return seen

    with_patches, with_tokens = class_tokens(4), class_tokens(0)
    assert torch.equal(*with_patches)
    assert not torch.allclose(*with_tokens)


def test_joins_by_their_formulas() -> None:
    tokens, class_token = torch.randn(2, 5, 6), torch.randn(2, 8)
    concat = Concat(6, 8, 2)
    expected = torch.cat([F.layer_norm(tokens.mean(1), (6,)), class_token], 1)
    torch.testing.assert_close(concat(tokens, class_token), expected)
    gated = Gated(6, 8, 2)
    pooled = gated.project(tokens.mean(1))
    gate = torch.sigmoid(gated.gate(torch.cat([pooled, class_token], 1)))
    torch.testing.assert_close(gated(tokens, class_token), gate * pooled + (1 - gate) * class_token)
    cross = CrossAttention(6, 8, 2)
    read = cross.attention(class_token[:, None], cross.project(tokens))[:, 0]
    torch.testing.assert_close(cross(tokens, class_token), F.layer_norm(class_token + read, (8,)))
    assert (concat.out, gated.out, cross.out) == (14, 8, 8)


def test_an_extractor_is_its_network_without_head() -> None:
    _, backbone = build(extractor="cnn")
    alone = cnn(num_classes=3, in_channels=1, image_size=(8, 8), width=4)
    prefix = "backbone.features."
    names = {key.removeprefix(prefix) for key in alone.state_dict() if key.startswith(prefix)}
    assert names == set(backbone.extractor.state_dict())


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"join": "cross"}, "join must be one of 'concat', 'gated', 'cross-attention', not 'cross'"),
        ({"patch": 3}, "patch = 3 does not divide an image of 8 x 8"),
        ({"patch": -4}, "patch = -4 does not divide"),
        ({"width": 0}, "width must be >= 1, not 0"),
        ({"width": 0, "extractor": "rnn"}, "hidden must be >= 1, not 0"),
        ({"heads": 3}, "heads = 3 does not divide dim = 8"),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**keys)
