"""Class activation maps by hand, and that mirrored features give mirrored maps."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedvision.explanation.explainer import Explainer
from fedvision.explanation.faithfulness import enlarged
from fedvision.explanation.probes import cam, hires_cam
from tests.explanation.networks import built, picture, scored

ACTIVATIONS = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]])
GRADIENTS = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[-4.0, 0.0], [0.0, 0.0]]])


def test_grad_cam_weighs_a_channel_by_its_mean_gradient() -> None:
    """0.5 A_0 - 1 A_1: -0.5, 1, 1.5, 1, of which what is negative is cut off."""
    assert cam(ACTIVATIONS, GRADIENTS).tolist() == [[0.0, 1.0], [1.5, 1.0]]


def test_hires_cam_weighs_each_place_on_its_own() -> None:
    """0.5 A_0, and at the first place -4 A_1 beside."""
    assert hires_cam(ACTIVATIONS, GRADIENTS).tolist() == [[0.0, 1.0], [1.5, 2.0]]


class TwoChannels(nn.Module):
    """Two channels x and -x, their means over places, and two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
        self.conv.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        self.head.weight.data = torch.tensor([[3.0, 1.0], [0.0, 0.0]])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 2]."""
        found: torch.Tensor = self.head(self.conv(images).mean((2, 3)))
        return found


def test_a_linear_network_is_explained_by_its_weights() -> None:
    """Logit 0 is the mean of 3 x - x = 2 x, so the map is x where that is positive, scaled to 1."""
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 17
    for method in ("grad-cam", "hires-cam"):
        found = Explainer(scored(TwoChannels(), classes=2), method=method).explain(image, label=0)
        x = np.maximum(image[..., 0].astype(np.float64) - 128, 0)
        assert np.allclose(found.map, x / x.max(), atol=1e-6)


def test_behind_a_mean_over_places_both_are_the_same_and_elsewhere_not() -> None:
    image = picture((3, 32, 32))
    for name, equal in (("resnet8", True), ("cnn", False)):
        network = built({"use": name, "width": 4}, (3, 32, 32))
        first, second = (
            Explainer(network, method=method).explain(image).map for method in ("grad-cam", "hires-cam")
        )
        assert np.allclose(first, second, atol=1e-5) == equal


def test_features_averaged_with_the_mirror_image_have_symmetric_maps() -> None:
    image = picture((3, 32, 32))
    for table in ({"use": "resnet8", "width": 4}, {"use": "vit", "dim": 8, "depth": 2, "heads": 2}):
        explainer = Explainer(built({**table, "mirrored": True}, (3, 32, 32)))
        one, other = explainer.explain(image), explainer.explain(image[:, ::-1].copy())
        assert one.map.max() == 1
        assert np.allclose(one.map, other.map[:, ::-1], atol=1e-4)


def test_cells_become_pixels_in_their_place() -> None:
    """The middle of a cell keeps its value; between two middles it goes straight."""
    found = enlarged(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), (4, 4))
    assert found.tolist() == [[0.0, 0.25, 0.75, 1.0]] * 4
