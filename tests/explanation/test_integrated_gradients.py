"""Attributions by hand, and that they add up to the logit's change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedvision.explanation.integrated_gradients import integrated_gradients
from tests.explanation.networks import built, picture, scored


class Product(nn.Module):
    """Logits x_0 x_1 and x_2^2 of the pixels x."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 2]."""
        x = images.flatten(1)
        return torch.stack([x[:, 0] * x[:, 1], x[:, 2] ** 2], dim=1)


def test_two_factors_share_their_product() -> None:
    x = torch.tensor([3.0, -2.0, 5.0, 7.0]).view(1, 1, 2, 2)
    found = integrated_gradients(scored(Product(), classes=2), x, 0)
    torch.testing.assert_close(found.values.flatten(), torch.tensor([-3.0, -3.0, 0.0, 0.0]))
    assert found.change == -6
    other = integrated_gradients(scored(Product(), classes=2), x, 1).values.flatten()
    torch.testing.assert_close(other, torch.tensor([0.0, 0.0, 25.0, 0.0]))


@pytest.mark.parametrize(
    "table",
    [
        {"use": "rnn", "hidden": 8},
        {"use": "vit", "dim": 8, "depth": 2, "heads": 2},
        {"use": "cnn", "width": 4},
        {"use": "fusion", "width": 4, "dim": 8},
    ],
    ids=lambda table: table["use"],
)
def test_attributions_add_up_to_the_change(table: dict[str, object]) -> None:
    network = built(table, (3, 32, 32))
    network.network.eval()
    batch = network.inputs(picture((3, 32, 32)), None)
    found = integrated_gradients(network, batch, 2)
    with torch.no_grad():
        change = network.logits(batch)[0, 2] - network.logits(torch.zeros_like(batch))[0, 2]
    assert found.change == pytest.approx(float(change), abs=1e-5)
    assert float(found.values.sum()) == pytest.approx(found.change, abs=0.05 * max(1, abs(found.change)))
    assert found.complete


class Step(nn.Module):
    """A logit that jumps, which no gradient tells."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 2]."""
        x = images.flatten(1).sum(1, keepdim=True)
        return torch.cat([10 * (x > 1).float() + 0 * x, x], dim=1)


def test_what_does_not_add_up_is_said_to() -> None:
    found = integrated_gradients(scored(Step(), classes=2), torch.ones(1, 1, 2, 2), 0)
    assert (found.change, found.error, found.complete) == (10, 10, False)
