"""Networks inside a network: their tokens, what is trained of them, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from fedvision.config import LoraConfig, ModelConfig
from fedvision.errors import ConfigError
from fedvision.inputs import InputConfig, Inputs
from fedvision.models.base import ImageModel
from fedvision.models.build import build_model
from fedvision.models.freezing import frozen_names, training_mode
from fedvision.models.frozen_front import cut
from fedvision.models.fusion import FusionBackbone
from fedvision.models.parts import Encoder, Extractor, parts_of
from fedvision.models.recomputation import blocks, recomputed
from fedvision.models.rnn import RnnBackbone
from fedvision.models.state import floating
from fedvision.models.tokens import as_tokens
from fedvision.models.units import units
from fedvision.tasks.classification import Classification

RESNET, VIT, LITE = "torchvision/resnet18", "timm/vit_tiny_patch16_224", "efficientnet-lite0"
OWN: dict[str, Any] = {"dim": 8, "depth": 1, "heads": 2}
SMALL_VIT: dict[str, Any] = {"use": "vit", "dim": 8, "depth": 1, "heads": 2}
AGE = {"age": InputConfig(kind="number")}
SMALL_RESNET: dict[str, Any] = {"use": "resnet8", "norm": "batch", "width": 4}


def build(use: str = "fusion", size: int = 64, channels: int = 3, seed: int = 1, **keys: Any) -> ImageModel:
    tables = ("train", "personal", "inputs", "lora", "feature_layers")
    known = {name: keys.pop(name) for name in tables if name in keys}
    model = build_model(
        ModelConfig(use=use, args=keys, **known),
        task=Classification(),
        num_classes=3,
        in_channels=channels,
        image_size=(size, size),
        seed=seed,
    )
    assert isinstance(model, ImageModel)
    return model


def extractor_of(model: ImageModel) -> Extractor:
    found = model.backbone.get_submodule("extractor")
    assert isinstance(found, Extractor)
    return found


def images(size: int = 64, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def theirs(model: ImageModel, network: nn.Module) -> nn.Module:
    """Return a library's network with the tensors of an extractor."""
    own = extractor_of(model).network.state_dict()
    assert not network.load_state_dict(own, strict=False).unexpected_keys
    return network.eval()


@torch.no_grad()
def test_tokens_are_the_last_feature_map_of_a_known_network() -> None:
    model = build(extractor=RESNET, **OWN).eval()
    extractor = extractor_of(model)
    original, x = theirs(model, torchvision.models.resnet18(weights=None)), images()
    x1 = original.maxpool(original.relu(original.bn1(original.conv1(x))))  # type: ignore[operator]
    early = original.layer2(original.layer1(x1))  # type: ignore[operator]
    wanted = original.layer4(original.layer3(early))  # type: ignore[operator]
    assert (extractor.layer, extractor.channels, extractor.grid) == ("layer4", 512, (2, 2))
    assert torch.equal(extractor(x), wanted)
    # Place (1, 0) is the third token.
    assert torch.equal(as_tokens(extractor(x))[:, 2], wanted[:, :, 1, 0])
    names = {name for name in model.state_dict() if name.startswith("backbone.extractor.")}
    given = original.state_dict()
    assert names == {f"backbone.extractor.network.{name}" for name in given if not name.startswith("fc.")}
    layer2 = extractor_of(chosen := build(extractor={"use": RESNET, "layer": "layer2"}, **OWN).eval())
    assert (layer2.layer, layer2.channels, layer2.grid) == ("layer2", 128, (8, 8))
    theirs(chosen, original)
    x1 = original.maxpool(original.relu(original.bn1(original.conv1(x))))  # type: ignore[operator]
    assert torch.equal(layer2(x), original.layer2(original.layer1(x1)))  # type: ignore[operator]
    assert not any(".layer3." in name or ".layer4." in name for name in chosen.state_dict())


@torch.no_grad()
def test_tokens_of_a_transformer_are_those_after_its_last_norm() -> None:
    model = build(extractor=VIT, size=32, **OWN).eval()
    extractor = extractor_of(model)
    original = theirs(model, timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32))
    assert (extractor.layer, extractor.channels, extractor.grid) == ("norm", 192, (5, 1))
    assert torch.equal(extractor(images(32)), original.forward_features(images(32)))  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "size", "layer", "channels", "grid"),
    [
        ("torchvision/vgg11", 64, "features", 512, (2, 2)),
        ("torchvision/mobilenet_v3_small", 64, "features", 576, (2, 2)),
        # At 32 pixels the last stages have one place.
        (LITE, 32, "blocks.10", 112, (2, 2)),
        ("timm/mobilenetv3_small_050", 64, "blocks", 288, (2, 2)),
        ("cnn", 28, "features", 64, (3, 3)),
        ("rnn", 32, "features", 128, (32, 1)),
        ("vit", 32, "transformer.norm", 64, (65, 1)),
    ],
)
def test_the_layer_is_found_in_every_kind_of_network(
    use: str, size: int, layer: str, channels: int, grid: tuple[int, int]
) -> None:
    model = build(extractor={"use": use}, size=size, **OWN)
    found = extractor_of(model)
    assert (found.layer, found.channels, found.grid) == (layer, channels, grid)
    # Every tensor is one that learns: what lies behind the layer is gone.
    F.cross_entropy(model(images(size)), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class ChannelsLast(nn.Module):
    """Returns maps [B, h, w, F], as some transformers of windows do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 6, 8, 8)
        self.mix = nn.Linear(6, 5)
        self.head = nn.Linear(5, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.mix(self.cut(x).permute(0, 2, 3, 1))
        scores: torch.Tensor = self.head(mixed.mean((1, 2)))
        return scores


HERE = __name__ if __name__.startswith("tests.") else "tests.models.test_parts"


@torch.no_grad()
def test_a_map_with_its_channels_last_is_turned() -> None:
    model = build(extractor=f"{HERE}:ChannelsLast", size=32, **OWN)
    found = extractor_of(model)
    assert (found.layer, found.channels, found.grid) == ("mix", 5, (4, 4))
    network: Any = found.network
    wanted = network.mix(network.cut(images(32)).permute(0, 2, 3, 1))
    assert torch.equal(found(images(32)), wanted.permute(0, 3, 1, 2))
    assert not any("network.head" in name for name in model.state_dict())


def test_the_transformer_reads_an_early_layer_and_the_join_the_last_one() -> None:
    model = build(extractor=RESNET, early="layer2", **OWN).eval()
    backbone = model.backbone
    assert isinstance(backbone, FusionBackbone)
    seen: dict[str, torch.Tensor] = {}
    backbone.transformer.register_forward_pre_hook(lambda module, args: seen.update(transformer=args[0]))
    backbone.join.register_forward_pre_hook(lambda module, args: seen.update(join=args[0]))
    model(images())
    assert seen["transformer"].shape == (2, 64, 128)
    assert seen["join"].shape == (2, 4, 512)
    early, last = extractor_of(model).outputs(images())
    assert torch.equal(seen["transformer"], as_tokens(early))
    assert torch.equal(seen["join"], as_tokens(last))


def test_further_tokens_are_read_behind_those_of_any_extractor() -> None:
    model = build(extractor=SMALL_RESNET, inputs=AGE, size=16, **OWN).eval()
    found = [model(Inputs(images(16), torch.full((2, 1), age))) for age in (1.0, -1.0, float("nan"))]
    assert not torch.allclose(found[0], found[1])
    assert all(logits.isfinite().all() for logits in found)


@pytest.mark.slow
@pytest.mark.parametrize("join", ["concat", "gated", "cross-attention"])
@pytest.mark.parametrize("transformer", [None, VIT])
def test_every_join_takes_networks_of_libraries(join: str, transformer: str | None) -> None:
    keys = {"transformer": transformer, "heads": 4} if transformer else OWN
    model = build(extractor=RESNET, join=join, size=64, **keys)
    width = 192 if transformer else 8
    assert model.head.in_features == (512 + width if join == "concat" else width)  # type: ignore[operator]
    F.cross_entropy(model(images()), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    if transformer:
        encoder = model.backbone.get_submodule("transformer")
        assert isinstance(encoder, Encoder)
        own = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).eval()
        own.load_state_dict(encoder.network.state_dict())
        assert torch.equal(encoder.eval()(images()), own(images()))


def trained(model: nn.Module) -> set[str]:
    return set(floating(model)) - set(frozen_names(model))


LAST_RESNET = "backbone.extractor.network.features.stages.2.0."


@pytest.mark.parametrize(
    ("extractor", "transformer", "expected"),
    [
        ("none", "none", ()),
        ("none", "all", ("backbone.transformer.",)),
        ("last:1", "none", (LAST_RESNET,)),
        ("last:1", "last:1", (LAST_RESNET, "backbone.transformer.network.transformer.norm.")),
    ],
)
def test_each_part_trains_what_it_says_and_the_join_and_head_always(
    extractor: str, transformer: str, expected: tuple[str, ...]
) -> None:
    model = build(
        extractor={**SMALL_RESNET, "train": extractor},
        transformer={**SMALL_VIT, "train": transformer},
        heads=2,
        size=16,
    )
    always = ("backbone.join.", "head.")
    found = trained(model)
    assert found == {name for name in floating(model) if name.startswith((*always, *expected))}
    for prefix in (*always, *expected):
        assert any(name.startswith(prefix) for name in found)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training_mode(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    F.cross_entropy(model(images(16)), torch.tensor([0, 1])).backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in moved if name in before and before[name].is_floating_point()} <= found
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in found), name


def test_adapters_are_where_a_part_says_so_and_nowhere_else() -> None:
    keys = {"extractor": {**SMALL_RESNET, "train": "none"}, "heads": 2, "lora": LoraConfig(rank=1)}
    model = build(transformer={**SMALL_VIT, "train": "lora"}, size=16, **keys)
    adapters = {name for name in floating(model) if "lora_" in name}
    assert adapters
    assert all(name.startswith("backbone.transformer.network.") for name in adapters)
    assert trained(model) - adapters == {
        name for name in floating(model) if name.startswith(("backbone.join.", "head."))
    }


def test_a_frozen_part_stays_in_evaluation() -> None:
    model = build(extractor={**SMALL_RESNET, "train": "none"}, size=16, **OWN)
    training_mode(model)
    assert not any(module.training for module in extractor_of(model).network.modules())
    assert model.backbone.get_submodule("transformer").training


def test_recurrent_layers_read_the_rows_of_a_frozen_network() -> None:
    reads = {**SMALL_RESNET, "train": "none"}
    model = build("rnn", reads=reads, hidden=8, size=16).eval()
    inner = model.backbone.get_submodule("features.reads")
    assert isinstance(model.backbone, RnnBackbone)
    assert isinstance(inner, Extractor)
    found = inner(images(16))
    assert found.shape == (2, 16, 4, 4)
    # A row of the map is a token: for each channel its four places.
    rows = found.permute(0, 2, 1, 3).flatten(2)
    states = model.backbone.features.recurrent(rows)[0]
    assert torch.equal(model.backbone.features(images(16)), states)
    assert {name for name in frozen_names(model)} == {
        name for name in floating(model) if name.startswith("backbone.features.reads.")
    }
    of_tokens = build("rnn", reads=SMALL_VIT, hidden=8, size=16).eval()
    (prefix, (name, part)) = next(iter(parts_of(of_tokens).items()))
    assert (prefix, name) == ("backbone.features.reads.", "reads")
    states = of_tokens.backbone.features.recurrent(part(images(16)))[0]  # type: ignore[operator, union-attr]
    assert torch.equal(of_tokens.backbone.features(images(16)), states)  # type: ignore[operator]
    within = build(extractor={"use": "rnn", "hidden": 8, "reads": reads}, size=16, **OWN)
    assert [name for name, _ in parts_of(within).values()] == ["extractor", "extractor.reads"]
    assert {name for name in frozen_names(within)} == {
        name for name in floating(within) if ".features.reads." in name
    }


def test_gray_images_are_colour_to_the_part_that_needs_it() -> None:
    model = build(extractor=RESNET, transformer=SMALL_VIT, channels=1, heads=2, size=64).eval()
    colour = theirs(model, torchvision.models.resnet18(weights=None))
    x = images(channels=1)
    with torch.no_grad():
        found = extractor_of(model)(x).mean((2, 3))
        colour.fc = nn.Identity()
        torch.testing.assert_close(found, colour(x.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("early", ["", "features.stages.0"])
def test_a_copy_gives_the_same_and_keeps_no_tensors(early: str) -> None:
    model = build(extractor=SMALL_RESNET, early=early, size=16, **OWN).eval()
    wanted = model(images(16))
    assert wanted.requires_grad  # a copy that held it could not be made
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(images(16)), wanted)
        assert extractor_of(copied).layers == extractor_of(model).layers


def test_activations_that_are_computed_anew_give_the_same_gradients() -> None:
    model = build(extractor=SMALL_RESNET, early="features.stages.0", transformer=None, size=16, **OWN)
    assert len(blocks(model)) >= 2

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        F.cross_entropy(model(images(16)), torch.tensor([0, 1])).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    with recomputed(model):
        again = gradients()
    assert len(plain) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    inside = build(extractor={**SMALL_RESNET, "layer": "features.stages.1.0.conv1"}, size=16, **OWN)
    assert not any("stages.1" in name for name, unit in units(inside.backbone) if unit in blocks(inside))
    with recomputed(inside):
        F.cross_entropy(inside(images(16)), torch.tensor([0, 1])).backward()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's, hidden as a rule
def test_a_compiled_network_gives_the_same() -> None:
    model = build(extractor=SMALL_RESNET, early="features.stages.0", size=16, **OWN).eval()
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(images(16)), model(images(16)))


def test_what_is_computed_once_before_the_first_trained_block_is_the_same() -> None:
    model = build(extractor={**SMALL_RESNET, "train": "last:1"}, size=16, **OWN).eval()
    found = cut(model, (3, 16, 16))
    assert found is not None
    once = found.front(images(16))[:, :, None, None]
    assert torch.equal(found.rest(once), model.backbone(images(16)))
    # What reads the image, or an earlier layer, beside the tokens of a frozen extractor is no chain.
    for other, chain in (({}, True), ({"patch": 4}, False), ({"early": "features.stages.0"}, False)):
        frozen = build(extractor={**SMALL_RESNET, "train": "none"}, size=16, **OWN, **other)
        assert (cut(frozen, (3, 16, 16)) is not None) == chain


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"extractor": "resnet9"}, "model.extractor: [model] use = 'resnet9': there is no such model"),
        ({"extractor": {"width": 3}}, "model.extractor.use is missing"),
        ({"extractor": {"use": "cnn", "name": "x"}}, "model.extractor.name is no key"),
        ({"extractor": {"use": "cnn", "train": "head"}}, "model.extractor.train must be 'all', 'none'"),
        (
            {"extractor": {"use": "cnn", "scale": [2.0]}},
            "model.extractor.scale and shift must be as many finite",
        ),
        ({"extractor": {"use": "cnn", "scale": [0.0], "shift": [1.0]}}, "three channels, scale not 0"),
        ({"extractor": {"use": "cnn", "scale": [math.inf], "shift": [1.0]}}, "as many finite numbers"),
        ({"extractor": {"use": "cnn", "size": 3}}, "model.extractor: [model] use = 'cnn': it takes no key"),
        ({"extractor": {"use": "cnn", "layer": "x"}}, "model.extractor: the network has no layer 'x'"),
        (
            {"extractor": {"use": RESNET, "layer": "layer1.0.relu"}},
            "model.extractor: the layer 'layer1.0.relu' is called 2 times in a pass",
        ),
        ({"extractor": {"use": "cnn", "layer": "dense"}}, "returns neither a feature map"),
        ({"extractor": {"use": "cnn"}, "width": 3}, "width is for an extractor by one of the five names"),
        ({"extractor": "resnet8", "early": "layer1"}, 'extractor = { use = "resnet8" }'),
        ({"extractor": RESNET, "early": "layer4"}, "'layer4' does not come before 'layer3'"),
        ({"extractor": RESNET, "early": "layer1", "patch": 4}, "patch and early both say"),
        ({"transformer": SMALL_VIT, "patch": 4}, "patch is for our own Transformer"),
        ({"transformer": SMALL_VIT, "depth": 4}, "depth is for our own Transformer"),
        ({"transformer": SMALL_VIT, "inputs": AGE}, "[model.inputs] is for our own Transformer"),
        ({"extractor": "none", "transformer": SMALL_VIT}, "transformer needs pixels"),
        ({"extractor": "none", "early": "layer1"}, "early needs pixels"),
        ({"transformer": {**SMALL_VIT, "layer": "norm"}}, "model.transformer.layer is for an extractor"),
        ({"transformer": "torchvision/squeezenet1_1"}, "model.transformer: its backbone makes [3, 512, "),
        ({"transformer": f"{HERE}:ChannelsLast"}, "without backbone and head"),
        (
            {"extractor": {"use": "rnn", "reads": {"use": "resnet9"}}},
            "model.extractor.reads: [model] use = 'resnet9'",
        ),
        (
            {"extractor": {"use": RESNET}, "train": "head", "transformer": {**SMALL_VIT, "train": "none"}},
            "leave",
        ),
        (
            {"extractor": {**SMALL_RESNET, "train": "last:9"}},
            "model.extractor.train = 'last:9': the backbone has",
        ),
        (
            {"extractor": {**SMALL_RESNET, "train": "none"}, "personal": ("backbone.extractor.*",)},
            "which model.extractor.train = 'none' leaves untrained",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(size=32, **{"heads": 2, **keys})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
