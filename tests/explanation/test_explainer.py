"""Every built-in network is explained, each image on its own, and the network is left as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvision.errors import ConfigError
from fedvision.explanation.explainer import Explainer
from fedvision.explanation.plan import plan
from fedvision.models.base import ImageModel
from fedvision.models.fusion import FusionBackbone
from fedvision.tasks.multilabel import MultiLabel
from tests.explanation.networks import built, picture, scored
from tests.methods import NETWORKS

SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"width": 4, "dense": 8},
    "rnn": {"hidden": 8},
    "vit": {"dim": 8, "depth": 1, "heads": 2},
    "fusion": {"width": 4, "dim": 8, "depth": 1, "heads": 2},
}
NAMES = NETWORKS
SHAPES = [(1, 8, 8), (3, 20, 36)]
EXPECTED = {
    "rnn": "integrated-gradients",
    "vit": "attention-rollout",
    "fusion": "hires-cam and attention-rollout",
}


def table(name: str) -> dict[str, Any]:
    return {"use": name, **SMALL.get(name, {"width": 4})}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_explained_and_left_as_it_was(name: str, shape: tuple[int, int, int]) -> None:
    network = built(table(name), shape)
    model, image = network.network.train(), picture(shape)
    next(iter(model.parameters())).grad = torch.ones_like(next(iter(model.parameters())))
    frozen = list(model.parameters())[-1].requires_grad_(False)
    before = state_of(model)
    found = Explainer(network).explain(image)
    assert state_of(model) == before
    assert not frozen.requires_grad
    assert found.method == EXPECTED.get(name, "hires-cam")
    assert found.map.shape == shape[1:]
    assert found.map.dtype == np.float32
    assert found.map.min() >= 0
    assert found.map.max() == 1
    assert found.label == found.predicted
    again = Explainer(built(table(name), shape)).explain(image)
    assert np.array_equal(found.map, again.map)
    assert found.scores == again.scores


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return tensors, gradients, modes, hooks and which parameters have gradients, as values."""
    found: dict[str, Any] = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        gradient = None if parameter.grad is None else parameter.grad.tolist()
        found[f"{name}, gradient"] = (parameter.requires_grad, gradient)
    for name, module in model.named_modules():
        hooks = (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        found[f"{name}, mode"] = (module.training, hooks, getattr(module, "fused_attn", None))
    return found


def test_a_librarys_transformer_is_left_as_it_was() -> None:
    keys = {"patch_size": 8, "depth": 1, "embed_dim": 8, "num_heads": 2}
    network = built({"use": "timm/vit_tiny_patch16_224", **keys}, (3, 16, 16))
    before = state_of(network.network.train())
    Explainer(network).explain(picture((3, 16, 16)))
    assert state_of(network.network) == before


def test_an_error_leaves_the_network_as_it_was() -> None:
    network = built(table("rnn"), (1, 8, 8))
    before = state_of(network.network.train())
    with pytest.raises(ConfigError, match="method 'grad-cam' needs a network with feature maps"):
        Explainer(network, method="grad-cam").explain(picture((1, 8, 8)))
    assert state_of(network.network) == before


@pytest.mark.parametrize("name", ["cnn", "vit", "fusion", "rnn"])
def test_a_map_does_not_depend_on_other_images(name: str) -> None:
    images = [picture((3, 20, 36), seed) for seed in range(3)]
    together = Explainer(built(table(name), (3, 20, 36)))
    found = [together.explain(image) for image in images]
    alone = Explainer(built(table(name), (3, 20, 36))).explain(images[2])
    assert np.array_equal(found[2].map, alone.map)
    assert found[2].scores == alone.scores
    assert not np.array_equal(found[1].map, alone.map)


def test_the_class_that_is_asked_for_is_explained() -> None:
    network, image = built(table("cnn"), (3, 20, 36)), picture((3, 20, 36))
    predicted = Explainer(network).explain(image)
    other = Explainer(network).explain(image, label=(predicted.label + 1) % 5)
    assert other.label == (predicted.label + 1) % 5
    assert other.predicted == predicted.label
    assert other.probability < predicted.probability
    assert not np.array_equal(other.map, predicted.map)


def test_several_labels_an_image() -> None:
    found = Explainer(built(table("cnn"), (3, 20, 36), MultiLabel())).explain(picture((3, 20, 36)))
    assert found.label == found.predicted
    assert 0 < found.scores.deletion < 1


def test_a_network_without_halves_or_maps_gets_integrated_gradients() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    found = Explainer(scored(network)).explain(picture((1, 8, 8)))
    assert found.method == "integrated-gradients"
    assert found.complete
    assert found.completeness_error is not None
    assert found.completeness_error < 1e-4


def test_maps_of_one_place_are_none() -> None:
    """The last map is 1 x 1, the one before it 2 x 2, and the first with four places a side is taken."""
    pools = [nn.Conv2d(1, 3, 3, padding=1), *(nn.AvgPool2d(2) for _ in range(3))]
    network = nn.Sequential(*pools, nn.Flatten(), nn.Linear(3, 5))
    chosen = plan(network.eval(), torch.zeros(2, 1, 8, 8), "hires-cam").probes[""]
    assert chosen._layer is network[1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "method", "sentence"),
    [
        ({}, "lime", "method must be one of auto, grad-cam"),
        ({}, "attention-rollout", "needs a Transformer whose attention is known"),
        (
            {"expand": {"use": "random-relu", "features": 9}, "train": "head"},
            "auto",
            "no gradient passes",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes: dict[str, Any], method: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Explainer(built({**table("cnn"), **changes}, (1, 8, 8)), method=method).explain(picture((1, 8, 8)))


def test_a_network_that_reads_no_pixels_is_refused() -> None:
    keys = {**table("fusion"), "extractor": "none", "inputs": {"age": {"kind": "number"}}}
    del keys["width"]
    with pytest.raises(ConfigError, match="reads no pixels"):
        Explainer(built(keys, (1, 8, 8))).explain(picture((1, 8, 8)), further=np.zeros(1, np.float32))


def test_inputs_beside_the_pixels_are_held_fixed() -> None:
    network = built({**table("fusion"), "inputs": {"age": {"kind": "number"}}}, (1, 8, 8))
    image = picture((1, 8, 8))
    young, old = (
        Explainer(network).explain(image, label=0, further=np.array([age], np.float32)) for age in (-9, 9)
    )
    assert young.probability != old.probability
    assert young.map.shape == old.map.shape == (8, 8)


def test_a_branch_that_the_head_does_not_read_has_no_share() -> None:
    """Of ``concat`` the head's first weights are the extractor's, the others the Transformer's."""
    network, image = built(table("fusion"), (1, 8, 8)), picture((1, 8, 8))
    model = network.network
    assert isinstance(model, ImageModel)
    assert isinstance(model.backbone, FusionBackbone)
    extractor = model.backbone.extractor.channels
    for part, name in ((slice(extractor, None), "extractor"), (slice(0, extractor), "transformer")):
        before = model.head.weight.data.clone()
        model.head.weight.data[:, part] = 0
        # The class whose log-odds the other branch raises most.
        found = max(
            (Explainer(network).explain(image, label=label) for label in range(5)),
            key=lambda one: one.branches[name].drop,
        )
        (other,) = {"extractor", "transformer"} - {name}
        assert found.branches[name].share == 1
        assert found.branches[name].drop > 0
        assert found.branches[other].share == 0
        assert found.branches[other].drop == pytest.approx(0, abs=1e-5)
        assert not found.branches[other].map.any()
        assert np.allclose(found.map, found.branches[name].map)
        model.head.weight.data = before


def test_a_branch_is_ablated_by_what_it_makes_of_an_empty_image() -> None:
    """Both together are the whole image's log-odds less those of an empty image, where logits are linear."""
    network, image = built(table("fusion"), (1, 8, 8)), picture((1, 8, 8))
    model = network.network.eval()
    found = Explainer(network).explain(image, label=1)
    with torch.no_grad():
        full, empty = (model.backbone(network.inputs(one, None)) for one in (image, np.full_like(image, 128)))  # type: ignore[operator]
        half = model.backbone.extractor.channels  # type: ignore[union-attr]
        swapped = {
            "extractor": torch.cat([empty[:, :half], full[:, half:]], 1),
            "transformer": torch.cat([full[:, :half], empty[:, half:]], 1),
        }
        for name, features in swapped.items():
            odds = [
                torch.logit(model.head(one).double().softmax(1)[0, 1]).item()  # type: ignore[operator]
                for one in (full, features)
            ]
            assert found.branches[name].drop == pytest.approx(odds[0] - odds[1], abs=1e-5)


def test_a_fusion_of_two_networks() -> None:
    keys = {
        "use": "fusion",
        "extractor": {"use": "vit", "patch": 8, "dim": 8, "depth": 1, "heads": 2},
        "transformer": {"use": "resnet8", "width": 4},
    }
    found = Explainer(built(keys, (3, 32, 32))).explain(picture((3, 32, 32)), label=2)
    assert found.method == "hires-cam"
    assert all(part.map.shape == (32, 32) for part in found.branches.values())
