"""A backbone that is cut where training begins makes what it made whole."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from fedvision import registry
from fedvision.config import ModelConfig
from fedvision.models.base import Backbone, ImageModel, with_linear_head
from fedvision.models.build import build_model
from fedvision.models.freezing import freeze, training_mode
from fedvision.models.frozen_front import Cut, FirstView, cut
from fedvision.models.gray import shown_gray
from fedvision.models.state import floating
from fedvision.models.units import last_units
from fedvision.tasks.base import build_task
from fedvision.tasks.segmentation import Segmentation
from fedvision.types import PluginSpec


def network(use: str, side: int, trained: int, *, gray: bool = False) -> ImageModel:
    """Return a network of which the last units of the backbone are trained; for colour, shown gray or not."""
    model = registry.build(
        "model", PluginSpec(use=use), num_classes=3, in_channels=3, image_size=(side, side)
    )
    model = shown_gray(model) if gray else model
    assert isinstance(model, ImageModel)
    last = tuple(f"backbone.{name}." for name in last_units(model.backbone, trained, "here"))
    freeze(model, [name for name in floating(model) if not name.startswith((*last, "head."))])
    return model


CASES = [
    ("resnet8", 32, 1, (32, 16, 16)),
    ("cnn", 16, 1, None),
    ("efficientnet-lite0", 64, 2, (192, 2, 2)),
    ("torchvision/resnet18", 64, 2, (256, 4, 4)),
    ("torchvision/mobilenet_v3_small", 64, 1, (576,)),
    ("torchvision/swin_t", 64, 1, (2, 2, 768)),
    ("torchvision/densenet121", 64, 1, (1024, 2, 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("use", "side", "trained", "shape"), CASES, ids=[case[0] for case in CASES])
def test_the_parts_make_what_the_whole_makes(
    use: str, side: int, trained: int, shape: tuple[int, ...] | None
) -> None:
    model = network(use, side, trained)
    before = copy.deepcopy(model.state_dict())
    found = cut(model, (3, side, side))
    assert found is not None
    images = torch.randn(3, 3, side, side)
    training_mode(model, False)
    with torch.no_grad():
        whole = model.backbone(images)
        rows = found.front(images)
        for part in (found.rest, pickle.loads(pickle.dumps(found.rest))):
            views = torch.stack([rows, torch.zeros_like(rows)], 2)[..., None]
            assert torch.allclose(part(views), whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))
    assert found.numbers == rows[0].numel()
    if shape:
        assert [part.shape for part in found.rest.modules() if isinstance(part, FirstView)] == [shape]
    _check_tensors(model, found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _check_tensors(model: ImageModel, found: Cut) -> None:
    """Check that each tensor is in one part, and is the network's own under its own name."""
    own, front, rest = (floating(part) for part in (model.backbone, found.front, found.rest))
    assert {id(tensor) for tensor in (front | rest).values()} == {id(tensor) for tensor in own.values()}
    assert len(front) + len(rest) == len(own)
    assert all(own[name] is tensor for name, tensor in rest.items())
    assert not any(tensor.requires_grad for tensor in front.values())


@pytest.mark.slow
@pytest.mark.parametrize("use", ["efficientnet-lite0", "torchvision/resnet18"])
def test_networks_for_colour_that_see_gray_are_cut(use: str) -> None:
    model = network(use, 64, 2, gray=True)
    found = cut(model, (1, 64, 64))
    assert found is not None
    images = torch.randn(3, 1, 64, 64)
    training_mode(model, False)
    with torch.no_grad():
        rows, whole = found.front(images), model.backbone(images)
        assert torch.allclose(found.rest(rows[..., None, None]), whole, rtol=1e-4, atol=1e-5)
    _check_tensors(model, found)


def test_gradients_of_the_rest_are_those_of_the_whole() -> None:
    model = network("resnet8", 16, 1)
    found = cut(model, (3, 16, 16))
    assert found is not None
    images = torch.randn(4, 3, 16, 16)
    training_mode(model)
    trained = {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert dict(found.rest.named_parameters()).keys() == trained.keys()
    whole = torch.autograd.grad(model.backbone(images).square().sum(), list(trained.values()))
    with torch.no_grad():
        rows = found.front(images)[:, :, None, None]
    parts = torch.autograd.grad(found.rest(rows).square().sum(), list(trained.values()))
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_a_whole_frozen_backbone_is_the_front() -> None:
    model = network("resnet8", 16, 1)
    freeze(model, [name for name in floating(model) if name.startswith("backbone.")])
    found = cut(model, (3, 16, 16))
    assert found is not None
    assert found.front is model.backbone
    assert torch.equal(found.rest(torch.arange(6.0).reshape(1, 3, 2, 1)), torch.tensor([[0.0, 2.0, 4.0]]))


class Chain(Backbone):
    """Three layers; how they are joined is a case's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.relu = nn.ReLU()
        self.out_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(images))).mean((2, 3))


class Skip(Chain):
    """Reads the front's output twice."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        return (x + self.third(self.second(x))).mean((2, 3))


class LongSkip(Chain):
    """Reads what comes before the cut behind it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        return (x + self.third(self.second(torch.sin(x)))).mean((2, 3))


class Shared(Chain):
    """Has one layer at two places."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.third(self.relu(self.second(self.relu(self.first(images))))).mean((2, 3))


class Between(Chain):
    """Changes numbers outside of layers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.third(torch.sin(self.second(torch.sin(self.first(images))))).mean((2, 3))


class Two(Chain):
    """Reads the images again."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(images)) + images).mean((2, 3))


class Parameter(Chain):
    """Has a tensor in no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images * self.scale)


@pytest.mark.parametrize(
    ("kind", "trained", "cuts"),
    [
        (Chain, ("third",), True),
        (Chain, ("first",), False),
        (Chain, (), True),
        # What the layer that is cut at reads is all that comes later: the cut is right.
        (Skip, ("second", "third"), True),
        (LongSkip, ("second", "third"), False),
        (Shared, ("third",), True),
        (Shared, ("second", "third"), False),
        (Between, ("second", "third"), False),
        (Between, ("third",), False),
        (Two, ("third",), False),
        (Two, ("second", "third"), False),
        (Parameter, ("scale", "third"), False),
    ],
)
def test_which_networks_are_cut(kind: type[Chain], trained: tuple[str, ...], cuts: bool) -> None:
    model = with_linear_head(kind(), 2)
    kept = tuple(f"backbone.{name}" for name in trained)
    freeze(model, [name for name in floating(model) if not name.startswith((*kept, "head."))])
    found = cut(model, (3, 8, 8))
    assert (found is not None) == cuts
    if found:
        images = torch.randn(2, 3, 8, 8)
        model.eval()
        with torch.no_grad():
            again = found.rest(found.front(images)[:, :, None, None])
        assert torch.allclose(again, model.backbone(images), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tables", "shape"),
    [
        ({"extractor": {"use": "resnet8", "width": 4, "train": "none"}}, (16, 16)),
        ({"extractor": {"use": "torchvision/swin_t", "train": "none"}, "join": "cross-attention"}, (16, 768)),
        ({"extractor": {"use": "resnet8", "width": 4, "train": "none"}, "patch": 8}, None),
        (
            {"extractor": {"use": "resnet8", "width": 4, "train": "none"}, "early": "features.stages.1"},
            None,
        ),
    ],
    ids=["tokens", "cross-attention", "patches of the image", "early tokens"],
)
def test_a_fusion_is_cut_behind_a_frozen_extractor(
    tables: dict[str, Any], shape: tuple[int, ...] | None
) -> None:
    side = 128 if "swin" in str(tables) else 16
    spec = ModelConfig(use="fusion", args={"dim": 16, "depth": 1, "heads": 2, **tables})
    task = build_task(PluginSpec(use="classification"))
    model = build_model(spec, task=task, num_classes=3, in_channels=3, image_size=(side, side), seed=0)
    found = cut(model, (3, side, side))
    assert (found is not None) == (shape is not None)
    if found and shape:
        assert [part.shape for part in found.rest.modules() if isinstance(part, FirstView)] == [shape]
        assert isinstance(model, ImageModel)
        _check_tensors(model, found)


def test_a_network_without_halves_or_without_frozen_layers_is_not_cut() -> None:
    assert cut(nn.Linear(2, 2), (3, 8, 8)) is None
    assert cut(with_linear_head(Chain(), 2), (3, 8, 8)) is None


def pyramid(train: str) -> ImageModel:
    backbone = {"use": "torchvision/resnet18", "train": train}
    model = build_model(
        ModelConfig(use="semantic-fpn", args={"backbone": backbone, "channels": 8, "width": 8}),
        task=Segmentation(),
        num_classes=3,
        in_channels=3,
        image_size=(64, 48),
        seed=0,
    ).eval()
    assert isinstance(model, ImageModel)
    return model


def test_several_maps_pass_the_cut_in_their_order() -> None:
    model = pyramid("none")
    parts = cut(model, (3, 64, 48))
    assert parts is not None
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        kept, whole = parts.front(images), model.backbone(images)
        found = parts.rest(kept[:, :, None, None])
    assert len(whole.maps) > 1
    assert kept.shape == (2, parts.numbers)
    assert found.size == whole.size == (64, 48)
    for one, other in zip(found.maps, whole.maps, strict=True):
        assert torch.equal(one, other)


def test_a_pyramid_knows_the_size_of_what_it_is_shown() -> None:
    assert pyramid("none").backbone(torch.zeros(1, 3, 96, 64)).size == (96, 64)


def test_a_pyramid_on_a_network_that_is_trained_in_part_is_not_cut() -> None:
    assert cut(pyramid("last:1"), (3, 64, 48)) is None
