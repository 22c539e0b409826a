"""Activations computed anew: the same bits of gradients, buffers and dropout, in less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torchvision.models import MobileNetV2, SwinTransformer, VisionTransformer
from torchvision.models.resnet import BasicBlock, ResNet

from fedvision.models.lora import add_lora
from fedvision.models.mkldnn_layout import _allowed, avoid_narrow_strides
from fedvision.models.recomputation import blocks, recomputed
from fedvision.models.resnet import resnet8
from fedvision.models.vit import vit

SHAPE = {"num_classes": 3, "in_channels": 3, "image_size": (16, 16)}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet8": (lambda: resnet8(**SHAPE, width=4, norm="batch"), 3),
    "vit": (lambda: vit(**SHAPE, dim=16, depth=2, heads=2, dropout=0.3), 2),
    "resnet": (lambda: ResNet(BasicBlock, [1, 2, 1, 1], num_classes=3), 5),
    "mobilenet": (lambda: MobileNetV2(num_classes=3, width_mult=0.25), 19),
    "torchvision-vit": (lambda: VisionTransformer(16, 8, 2, 2, 16, 32, dropout=0.2, num_classes=3), 2),
    "swin": (lambda: SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], dropout=0.1), 3),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    model = NETWORKS[name][0]()
    avoid_narrow_strides(model)
    return model


def step(model: nn.Module, within: bool) -> list[torch.Tensor]:
    """Return outputs, gradients, buffers and the state of the random stream after a training step."""
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    with recomputed(model) if within else nullcontext():
        out = model.train()(x)
        out.square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [out.detach(), *gradients, *model.buffers(), torch.get_rng_state()]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_has_the_same_bits(name: str) -> None:
    model = build(name)
    kinds = [type(module) for module in model.modules()]
    wanted, found = step(copy.deepcopy(model), within=False), step(model, within=True)
    assert len(wanted) == len(found)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_the_units_of_several_layers(name: str) -> None:
    found = blocks(build(name))
    assert len(found) == NETWORKS[name][1], [type(block).__name__ for block in found]


def test_adapters_train_through_frozen_blocks() -> None:
    model = build("torchvision-vit").requires_grad_(False)
    add_lora(model, rank=2, alpha=4, targets=["*"], generator=torch.Generator().manual_seed(1))
    wanted, found = step(copy.deepcopy(model), within=False), step(model, within=True)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


def test_fewer_activations_are_kept() -> None:
    def kept(within: bool) -> int:
        model, sizes = vit(**SHAPE, dim=16, depth=6, heads=2), set[tuple[int, int]]()
        x = torch.randn(4, 3, 16, 16)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.add((tensor.data_ptr(), tensor.nbytes))
            return tensor

        own = {parameter.data_ptr() for parameter in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            with recomputed(model) if within else nullcontext():
                out = model(x)
        assert out.requires_grad
        return sum(size for place, size in sizes if place not in own)

    assert kept(True) < 0.2 * kept(False)


def test_a_copy_made_within_is_of_its_own() -> None:
    """An algorithm may copy the network while it trains, as a teacher."""
    model = build("vit").eval()
    with recomputed(model):
        teacher = copy.deepcopy(model)
    x = torch.randn(2, 3, 16, 16)
    before = teacher(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(teacher(x), before)


def test_the_second_pass_runs_in_the_settings_of_the_first() -> None:
    seen: list[bool] = []

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(_allowed.get())
            found: torch.Tensor = self.layer(x).tanh()
            return found

    model = nn.Sequential(Block(), Block())
    with recomputed(model):
        token = _allowed.set(True)
        out = model(torch.randn(2, 4))
        _allowed.reset(token)
        out.sum().backward()
    assert seen == [True] * 4


def test_without_gradients_a_block_runs_once() -> None:
    model = build("resnet8").eval()
    x = torch.randn(2, 3, 16, 16)
    calls: list[object] = []
    blocks(model)[0].register_forward_hook(lambda *a: calls.append(a))
    with torch.no_grad(), recomputed(model):
        assert torch.equal(model(x), model(x))
    assert len(calls) == 2
