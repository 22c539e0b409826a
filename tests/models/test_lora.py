"""Adapters: nothing changes at first, every one takes part however its layer is used, and they merge."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torchvision.models import MobileNetV2, SwinTransformer, VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fedvision.errors import ConfigError
from fedvision.models.cnn import cnn
from fedvision.models.fusion import fusion
from fedvision.models.lora import CalledConv2d, ReadWeight, adapter_names, adapters, add_lora, merge
from fedvision.models.mkldnn_layout import SubsampledConv2d, avoid_narrow_strides
from fedvision.models.resnet import resnet8
from fedvision.models.rnn import rnn
from fedvision.models.vit import vit

SHAPE = {"num_classes": 3, "in_channels": 3, "image_size": (16, 16)}


class Encoder(nn.Module):
    """torch's own layer, which reads all its weights in evaluation and calls their layers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(self.embed(x).flatten(2).transpose(1, 2)).mean(1)
        return found


class Standardised(nn.Conv2d):
    """A convolution whose forward pass standardises its weight, as in big-transfer networks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / std, self.bias, self.stride, self.padding)


def standardised() -> nn.Module:
    return nn.Sequential(Standardised(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 256, 5))


def padded() -> nn.Module:
    """Layers whose options a product of two convolutions must keep."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2, padding_mode="reflect", bias=False),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 16, 1, stride=2),
        nn.Conv2d(16, 16, 3, groups=2),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: cnn(**SHAPE, width=8, dense=16),
    "resnet8": lambda: resnet8(**SHAPE, width=4),
    "vit": lambda: vit(**SHAPE, dim=16, depth=2, heads=2),
    "rnn": lambda: rnn(**SHAPE),
    "fusion": lambda: fusion(**SHAPE),
    "resnet": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3),
    "resnext": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3, groups=4, width_per_group=4),
    "mobilenet": lambda: MobileNetV2(num_classes=3, width_mult=0.25, dropout=0.0),
    "swin": lambda: SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], stochastic_depth_prob=0.0),
    "torchvision-vit": lambda: VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3),
    "encoder-layer": Encoder,
    "standardised": standardised,
    "padded": padded,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    model = NETWORKS[name]()
    avoid_narrow_strides(model)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():  # a head that begins with zeros tells nothing
            nn.init.normal_(parameter, std=0.1)
    return model


def adapted(name: str, rank: int = 2, alpha: float = 4.0, targets: tuple[str, ...] = ("*",)) -> nn.Module:
    model, generator = build(name), torch.Generator().manual_seed(7)
    add_lora(model, rank=rank, alpha=alpha, targets=targets, generator=generator)
    return model


def with_random_b(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, layer in adapters(model):
            layer.lora_b.normal_(std=0.1, generator=generator)
    return model


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def outputs(model: nn.Module, training: bool, x: torch.Tensor | None = None) -> torch.Tensor:
    """Return outputs in evaluation without gradients, where torch has paths of their own, or in training."""
    for module in model.modules():
        module.train(training and not isinstance(module, nn.modules.batchnorm._BatchNorm))
    with torch.set_grad_enabled(training):
        found: torch.Tensor = model(images() if x is None else x)
    return found.detach()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_begins_as_it_was_bit_for_bit(name: str, training: bool) -> None:
    assert torch.equal(outputs(adapted(name), training), outputs(build(name), training))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tensors_keep_their_names_and_values(name: str) -> None:
    model, bare = adapted(name), build(name).state_dict()
    state = model.state_dict()
    assert [key for key in state if key not in adapter_names(model)] == list(bare)
    assert all(torch.equal(state[key], tensor) for key, tensor in bare.items())
    assert set(state) - set(bare) == set(adapter_names(model)) != set()


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_adapter_takes_part(name: str, training: bool) -> None:
    model = adapted(name)
    before = outputs(model, training)
    for layer, adapter in adapters(model):
        with torch.no_grad():
            adapter.lora_b.normal_(generator=torch.Generator().manual_seed(5))
            after = outputs(model, training)
            adapter.lora_b.zero_()
        assert not torch.equal(after, before), layer


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_changed_weight(name: str) -> None:
    """With W' = W + s B A: dB = s dW' A^T and dA = s B^T dW', whichever form the layer has."""
    model = with_random_b(adapted(name)).double()
    plain = merge(model)
    for network in (model, plain):
        for module in network.modules():
            module.train(not isinstance(module, nn.modules.batchnorm._BatchNorm))
        network(images().double()).square().mean().backward()
    weights = dict(plain.named_parameters())
    for name, layer in adapters(model):
        own = weights[f"{name}.{layer.OF}".lstrip(".")].grad
        assert own is not None
        assert layer.lora_a.grad is not None
        assert layer.lora_b.grad is not None
        whole, scale = own.flatten(1), layer.lora_scale
        torch.testing.assert_close(layer.lora_b.grad.flatten(1), scale * whole @ layer.lora_a.flatten(1).T)
        torch.testing.assert_close(layer.lora_a.grad.flatten(1), scale * layer.lora_b.flatten(1).T @ whole)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_merged_network_is_plain_and_computes_the_same(name: str, training: bool) -> None:
    model = with_random_b(adapted(name))
    before = copy.deepcopy(model.state_dict())
    plain, bare = merge(model), build(name)
    assert list(plain.state_dict()) == list(bare.state_dict())
    assert [type(module) for module in plain.modules()] == [type(module) for module in bare.modules()]
    assert all(parameter.requires_grad for parameter in plain.parameters())
    found, wanted = outputs(plain, training), outputs(model, training)
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    assert not torch.equal(wanted, outputs(bare, training))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_network_without_adapters_is_merged_as_it_is() -> None:
    model = build("cnn")
    assert merge(model) is model


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["resnet8", "swin", "torchvision-vit", "standardised"])
def test_a_copy_has_adapters_of_its_own(name: str, copied: Any) -> None:
    model = with_random_b(adapted(name))
    if name == "standardised":  # a class of the tests' own
        assert pickle.dumps(model)
    again = copied(model)
    assert adapter_names(again) == adapter_names(model)
    assert torch.equal(outputs(again, True), outputs(model, True))
    with torch.no_grad():
        for _, layer in adapters(again):
            layer.lora_b.zero_()
    assert torch.equal(outputs(again, True), outputs(build(name), True))
    assert not torch.equal(outputs(model, True), outputs(build(name), True))


@pytest.mark.parametrize("name", ["cnn", "resnet8", "vit", "resnext", "torchvision-vit"])
def test_clients_are_stacked(name: str) -> None:
    model = adapted(name).eval()
    own = {key: value for key, value in model.named_parameters() if key in adapter_names(model)}
    stacked = {
        key: torch.randn(3, *value.shape, generator=torch.Generator().manual_seed(len(key))) * 0.1
        for key, value in own.items()
    }
    x = images(6).unflatten(0, (3, 2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        together = vmap(lambda state, batch: functional_call(model, state, (batch,)))(stacked, x)
    for k in range(3):
        alone = functional_call(model, {key: value[k] for key, value in stacked.items()}, (x[k],))
        torch.testing.assert_close(together[k], alone, rtol=1e-4, atol=1e-5)


def test_values_of_a_layer_computed_by_hand() -> None:
    """W = [[1, 2]], A = [[1, 0]] and B = [[3]] with alpha / r = 2: (1 + 2 * 3) x1 + 2 x2."""
    layer = nn.Linear(64, 64)
    model = nn.Sequential(layer)
    add_lora(model, rank=1, alpha=2, targets=["*"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.zero_()
            if name == "0.weight":
                value[0, 0], value[0, 1] = 1, 2
            elif name == "0.lora_a":
                value[0, 0] = 1
            elif name == "0.lora_b":
                value[0, 0] = 3
    x = torch.zeros(1, 64)
    x[0, 0], x[0, 1] = 10, 100
    assert float(model(x)[0, 0].detach()) == 7 * 10 + 2 * 100
    assert model[0].weight[0, :2].tolist() == [7, 2]


def test_a_is_drawn_from_the_generator_and_b_is_zero() -> None:
    first, second = adapted("vit"), adapted("vit")
    other = build("vit")
    add_lora(other, rank=2, alpha=4, targets=["*"], generator=torch.Generator().manual_seed(8))
    for (_, one), (_, two), (_, three) in zip(
        adapters(first), adapters(second), adapters(other), strict=True
    ):
        assert torch.equal(one.lora_a, two.lora_a)
        assert not torch.equal(one.lora_a, three.lora_a)
        assert not one.lora_b.any()
        bound = one.lora_a[0].numel() ** -0.5
        assert 0.5 * bound < float(one.lora_a.detach().abs().max()) <= bound * 1.001


def test_narrow_strided_convolutions_stay_safe() -> None:
    model = adapted("resnet8", rank=1)
    found = [layer for _, layer in adapters(model) if isinstance(layer, SubsampledConv2d)]
    assert found
    assert all(isinstance(layer, CalledConv2d) for layer in found)


def test_layers_without_gain_and_shared_weights_have_none() -> None:
    mobile = adapted("mobilenet")
    names = {name for name, _ in adapters(mobile)}
    assert "features.1.conv.0.0" in {n for n, m in mobile.named_modules() if isinstance(m, nn.Conv2d)}
    assert all(rank_is_worth(layer) for _, layer in adapters(mobile))
    assert "classifier.1" in names
    tied = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32))
    tied[2].weight = tied[0].weight
    normed = nn.Sequential(tied, nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)))
    generator = torch.Generator()
    assert add_lora(normed, rank=1, alpha=1, targets=["*"], generator=generator) == ("0.1",)


def rank_is_worth(layer: Any) -> bool:
    weight = layer.state_dict()[layer.OF]
    return bool(layer.lora_a.numel() + layer.lora_b.numel() < weight.numel())


def test_the_head_is_left_and_patterns_choose() -> None:
    model = build("vit")
    names = add_lora(
        model,
        rank=2,
        alpha=2,
        targets=["*.expand", "*.0.attention.*"],
        generator=torch.Generator(),
        leave=model.head.modules(),
    )
    blocks = "backbone.transformer.blocks"
    attention = [f"{blocks}.0.attention.{name}" for name in ("query", "key_value", "out")]
    assert sorted(names) == sorted([f"{blocks}.0.expand", f"{blocks}.1.expand", *attention])
    every = build("vit")
    found = add_lora(
        every, rank=2, alpha=2, targets=["*"], generator=torch.Generator(), leave=every.head.modules()
    )
    assert "head" not in found
    assert len(found) == 11


@pytest.mark.parametrize(
    ("targets", "rank", "sentence"),
    [
        (["backbone.block.*"], 2, r"'backbone\.block\.\*' matches no linear layer, convolution or attention"),
        (["*"], 64, "matches only layers that are smaller than an adapter of rank 64; lower model.lora.rank"),
        (["*", "head"], 2, "'head' matches no linear layer"),
    ],
)
def test_targets_that_are_none_are_refused(targets: list[str], rank: int, sentence: str) -> None:
    model = build("vit")
    with pytest.raises(ConfigError, match=sentence):
        add_lora(
            model,
            rank=rank,
            alpha=1,
            targets=targets,
            generator=torch.Generator(),
            leave=model.head.modules(),
        )
    assert not list(adapters(model))


def test_a_called_layer_forms_no_product_of_its_size() -> None:
    """The frozen weight gets no gradient, and no tensor as large as it is kept for the backward pass."""
    model = nn.Sequential(nn.Linear(512, 512))
    add_lora(model, rank=2, alpha=2, targets=["*"], generator=torch.Generator())
    model[0]._parameters["weight"].requires_grad_(False)
    kept: list[torch.Tensor] = []
    own = model.state_dict()["0.weight"].data_ptr()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = model(torch.randn(4, 512)).sum()
    assert kept
    assert all(t.numel() < 512 * 512 or t.data_ptr() == own for t in kept)
    loss.backward()
    assert model[0]._parameters["weight"].grad is None
    assert isinstance(model[0], ReadWeight)


def test_adapters_stay_in_onednns_layout() -> None:
    """A stage of convolutions may have its feature maps in oneDNN's own layout from end to end."""
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1))
    add_lora(model, rank=2, alpha=4, targets=["*"], generator=torch.Generator().manual_seed(0))
    with_random_b(model)
    x, found = torch.randn(4, 8, 14, 14, generator=torch.Generator().manual_seed(1)), []
    for batch in (x, x.to_mkldnn()):
        model.zero_grad()
        out = model(batch)
        out = out.to_dense() if out.is_mkldnn else out
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
