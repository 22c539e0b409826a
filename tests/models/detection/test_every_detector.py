"""What every detector must do, whatever its kind and its backbone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedvision import seeding
from fedvision.config import ModelConfig
from fedvision.errors import ConfigError, PluginError
from fedvision.losses.detection import form
from fedvision.losses.weighting import cross_entropy
from fedvision.models.build import build_model
from fedvision.models.detection.detector import Detector
from fedvision.models.detection.outputs import DetectorOutput, Truth
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.tasks.detection import Detection
from tests.detection_data import SMALL

NAMES = sorted(SMALL)
BACKBONES = [
    {"use": "resnet8", "width": 8},
    {"use": "cnn", "width": 4},
    {"use": "torchvision/resnet18"},
]
PLAIN = cross_entropy(torch.ones(3))


def build(name: str, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 0, **keys: object) -> Detector:
    args = {key: value for key, value in {**SMALL[name], **keys}.items() if key != "use"}
    config = ModelConfig(use=name, args=args)
    model = build_model(
        config, task=Detection(), num_classes=3, in_channels=shape[0], image_size=shape[1:], seed=seed
    )
    assert isinstance(model, Detector)
    return model


def images(shape: tuple[int, int, int] = (3, 32, 32), batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


def losses_of(output: DetectorOutput, own: Truth) -> torch.Tensor:
    return output.losses(own, form(PLAIN, output.form))


def truth(batch: int = 3, absent: int = 1) -> Truth:
    corners = torch.tensor([[4.0, 4, 16, 18], [10, 12, 28, 30]]).expand(batch, -1, -1)
    corners = torch.cat([corners, torch.zeros(batch, absent, 4)], 1)
    present = torch.tensor([True, True, *[False] * absent]).expand(batch, -1).clone()
    present[-1] = False  # the last image shows nothing
    classes = torch.tensor([0, 2, *[0] * absent]).expand(batch, -1)
    return Truth(corners, classes, present)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda one: one["use"])
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_learns_from_losses_of_each_image(name: str, backbone: dict[str, object]) -> None:
    model = build(name, backbone=backbone, levels=0)
    losses = losses_of(model(images()), truth())
    assert losses.shape == (3,)
    assert losses.isfinite().all()
    losses.sum().backward()
    for key, parameter in model.named_parameters():
        assert key.startswith(("backbone.", "head.")), key
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), key
    idle = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    # Coarse maps of tiny images may be nobody's; heads and what is read first always learn.
    assert not [key for key in idle if not key.startswith("backbone.neck") and "further" not in key]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_measured_the_same_in_any_batch(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        together, alone = model(images()), model(images()[1:2])
        own = Truth(*(one[1:2] for one in truth()))
        losses = losses_of(together, truth())
        assert torch.allclose(losses[1:2], losses_of(alone, own), atol=1e-4)
        assert torch.equal(losses, losses_of(model(images()), truth()))
        one, other = together.detections(), alone.detections()
    count = int(other.counts[0])
    assert one.counts[1] == count
    assert torch.allclose(one.corners[1, :count], other.corners[0, :count], atol=1e-3)
    assert torch.allclose(one.scores[1, :count], other.scores[0, :count], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_targets_changes_nothing(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        losses = [losses_of(model(images()), truth(absent=absent)) for absent in (1, 1, 6)]
    assert torch.equal(losses[0], losses[1])
    if name == "faster-rcnn":  # padding is among the proposals, and what is drawn moves with it
        assert torch.allclose(losses[0], losses[2], rtol=0.2)
    else:
        assert torch.allclose(losses[0], losses[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_detector_learns_what_it_is_shown(name: str) -> None:
    with seeding.torch_global(0, "training"):
        model = build(name)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        x, own = images(batch=2), Truth(*(one[:2] for one in truth()))
        first = last = None
        for _ in range(150 if name == "faster-rcnn" else 60):  # its first stage comes first
            last = losses_of(model(x), own).mean()
            first = first or float(last.detach())
            optimizer.zero_grad()
            last.backward()
            optimizer.step()
    assert first is not None
    assert last is not None
    assert float(last.detach()) < 0.6 * first
    with torch.no_grad():
        found = model.eval()(x).detections()
    best = found.corners[0, 0]
    assert min((best - one).abs().max().item() for one in own.corners[0, :2]) < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gray_images_are_shown_to_a_backbone_of_colour(name: str) -> None:
    model = build(name, (1, 32, 32), backbone="torchvision/resnet18", levels=0)
    assert losses_of(model(images((1, 32, 32))), truth()).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_sides_that_are_no_powers_of_two_do(name: str) -> None:
    model = build(name, (3, 45, 37), levels=0)
    output = model(images((3, 45, 37)))
    assert losses_of(output, truth()).isfinite().all()
    found = output.detections()
    assert (found.corners <= torch.tensor([37.0, 45, 37, 45])).all()


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_bits_and_copies_work(name: str) -> None:
    one, other = build(name), build(name)
    assert all(torch.equal(one.state_dict()[key], value) for key, value in other.state_dict().items())
    copied = copy.deepcopy(one).eval()
    assert torch.equal(copied(images()).logits, one.eval()(images()).logits)


def test_a_backbone_of_no_maps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone: no layer of this network makes a feature map"):
        build("fcos", backbone={"use": "vit", "dim": 8, "depth": 1, "heads": 2})


def test_layers_can_be_named() -> None:
    model = build(
        "fcos",
        backbone={"use": "resnet8", "width": 8},
        layers=["features.stages.0", "features.stages.2"],
        levels=0,
    )
    assert [layer.grid for layer in model.backbone.extractor.layers] == [(32, 32), (8, 8)]
    with pytest.raises(PluginError, match="has no layer"):
        build("fcos", layers=["features.nowhere"])
    with pytest.raises(ConfigError, match="levels = 1, and the backbone makes 2 maps"):
        build(
            "fcos", backbone={"use": "resnet8", "width": 8}, layers=["features.stages.1", "features.stages.2"]
        )


def test_maps_of_a_large_network_are_the_last_of_each_size() -> None:
    model = build("fcos", (3, 64, 64), backbone="torchvision/resnet18", levels=0)
    assert [layer.name for layer in model.backbone.extractor.layers] == [
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    ]
    assert model.backbone.levels == 4
    assert build("fcos", (3, 96, 96), levels=0).backbone.levels == 3


@pytest.mark.parametrize("personal", [(), ("head.*",)])
def test_parts_of_a_detector_are_named_for_exchange(personal: tuple[str, ...]) -> None:
    model = build("fcos")
    groups = ParameterGroups.of(model, ModelConfig(use="fcos", personal=personal))
    assert all(name.startswith("backbone.") for name in groups.shared) == bool(personal)
    assert all(name.startswith("head.") for name in groups.personal)
    head = ParameterGroups.of(model, ModelConfig(use="fcos", train="head"))
    assert all(name.startswith("head.") for name in head.shared)
    assert {name.split(".")[0] for name in head.frozen} == {"backbone"}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("fcos", {"depth": -1}),
        ("fcos", {"channels": 0}),
        ("retinanet", {"score_threshold": 1.0}),
        ("ssdlite", {"nms_threshold": 0.0}),
        ("faster-rcnn", {"proposals": 0}),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, keys: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(keys))):
        build(name, **keys)


def test_heads_have_no_batch_norm() -> None:
    for name in NAMES:
        assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in build(name).modules())
