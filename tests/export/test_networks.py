"""Every built-in network as an ONNX file: what PyTorch computes, for any number of images of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedvision.export import checks, onnx_format
from fedvision.export.graph import PredictionGraph
from fedvision.trained_model import TrainedModel
from tests.export.models import noise, untrained
from tests.methods import NETWORKS as CLASSIFIERS
from tests.models.test_builtins import SMALL

FUSION: dict[str, Any] = {"use": "fusion", **SMALL["fusion"]}
PARTS: dict[str, Any] = {"use": "fusion", "dim": 8, "depth": 1, "heads": 2}
RESNET = {"use": "resnet8", "width": 4}
INPUTS = {
    "age": {"kind": "number", "mean": 50, "deviation": 10},
    "cell": {"kind": "category", "categories": ["a", "b"]},
    "note": {"kind": "text", "words": 3, "buckets": 50},
    "vector": {"kind": "vector", "columns": ["x", "y"]},
}
NETWORKS: dict[str, dict[str, Any]] = {
    **{name: {"use": name, **SMALL.get(name, {})} for name in CLASSIFIERS},
    "lstm both ways": {"use": "rnn", "hidden": 8, "cell": "lstm", "bidirectional": True},
    "gated": {**FUSION, "join": "gated"},
    "cross-attention of patches": {**FUSION, "join": "cross-attention", "patch": 4},
    "batch norm": {"use": "resnet8", "width": 4, "norm": "batch"},
    "columns": {**FUSION, "inputs": INPUTS},
    "columns alone": {"use": "fusion", "dim": 8, "depth": 1, "extractor": "none", "inputs": INPUTS},
    "mirrored": {"use": "cnn", "width": 4, "dense": 8, "mirrored": True},
    "feature layers": {"use": "cnn", "width": 4, "dense": 8, "feature_layers": ["features.conv2"]},
    "expanded": {
        "use": "cnn",
        "width": 4,
        "dense": 8,
        "train": "head",
        "expand": {"use": "random-relu", "features": 16},
    },
    "groups": {"use": "cnn", "width": 4, "dense": 8, "train": "head", "expand": {"use": "bucket-groups"}},
}
"""Built-ins and what changes how they compute, on gray images of 8 x 8."""
LARGE: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "extractor": ({**PARTS, "extractor": RESNET}, (8, 8, 1)),
    "early": (
        {**PARTS, "extractor": {"use": "torchvision/resnet18", "layer": "layer3"}, "early": "layer2"},
        (32, 32, 3),
    ),
    "two networks": (
        {**PARTS, "extractor": RESNET, "transformer": {"use": "timm/resnet10t"}, "dim": 64, "depth": 2},
        (32, 32, 3),
    ),
    "reads": ({"use": "rnn", "hidden": 8, "reads": RESNET}, (16, 16, 1)),
    "efficientnet-lite0": ({"use": "efficientnet-lite0"}, (32, 32, 3)),
    "torchvision/mobilenet_v3_small": ({"use": "torchvision/mobilenet_v3_small"}, (32, 32, 3)),
    "torchvision/swin_t": ({"use": "torchvision/swin_t"}, (32, 32, 3)),
    "torchvision/vit_b_32": ({"use": "torchvision/vit_b_32"}, (32, 32, 3)),
    "timm/convnext_atto": ({"use": "timm/convnext_atto"}, (32, 32, 3)),
    "timm/deit_tiny_patch16_224": ({"use": "timm/deit_tiny_patch16_224"}, (32, 32, 3)),
}


def check(model: TrainedModel) -> None:
    """Export, and compare with PyTorch: batches of 1, 3, 7, ... images, then images of other sizes."""
    graph = PredictionGraph(model, "stretch").eval()
    predict = onnx_format.OnnxPredictor(onnx_format.encode(graph, graph.example(), {}))
    images, further = checks.random_images(model)
    agreement = checks.compare(model, predict, images, further)
    assert agreement.difference <= checks.TOLERANCE
    assert agreement.decisions == 0
    checks.require_other_sizes(graph, predict, "this file")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"cnn"}))
def test_every_network_computes_the_same_as_onnx(name: str) -> None:
    check(untrained(NETWORKS[name]))


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_networks_of_libraries_and_of_parts_compute_the_same_as_onnx(name: str) -> None:
    check(untrained(*LARGE[name]))


@pytest.mark.slow
def test_the_cnn_computes_the_same_as_onnx_with_its_own_resize_and_colour() -> None:
    """Gray images with constants for three channels, resized by the transforms, and scaled logits."""
    transforms = {"mean": (0.4, 0.5, 0.3), "std": (0.2, 0.25, 0.3), "size": 12, "interpolation": "bicubic"}
    check(untrained(NETWORKS["cnn"], scale=2.5, transforms=transforms))


@pytest.mark.slow
def test_what_a_label_is_given_is_its_sigmoid() -> None:
    model = untrained(NETWORKS["cnn"], task="multi-label")
    graph = PredictionGraph(model, "exact").eval()
    predict = onnx_format.OnnxPredictor(onnx_format.encode(graph, graph.example(), {}))
    images = noise(5, (8, 8, 1))
    wanted = model.predict(images)
    found = predict(images)
    np.testing.assert_allclose(found, wanted.probabilities, atol=1e-6)
    assert np.array_equal(found >= 0.5, wanted.labels.astype(bool))
    assert not np.allclose(found.sum(1), 1)
