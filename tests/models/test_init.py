"""First weights: their size, gate by gate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedvision.models.init import glorot, recurrent


@pytest.mark.parametrize("layer", [nn.Linear(30, 50), nn.Conv2d(4, 8, 3)], ids=["linear", "convolution"])
def test_glorot_fills_the_range_and_clears_the_bias(layer: nn.Linear | nn.Conv2d) -> None:
    torch.manual_seed(0)
    inputs, outputs = (30, 50) if isinstance(layer, nn.Linear) else (4 * 9, 8 * 9)
    bound = (6 / (inputs + outputs)) ** 0.5
    weight = glorot(layer).weight
    assert 0.97 * bound < weight.abs().max() <= bound
    assert not layer.bias.any()  # type: ignore[union-attr]


def test_a_layer_without_bias_stays_without() -> None:
    assert glorot(nn.Linear(2, 3, bias=False)).bias is None


def test_every_gate_of_a_gru_is_orthogonal_in_its_state() -> None:
    layer = recurrent(nn.GRU(3, 6, num_layers=2, bidirectional=True))
    for name, parameter in layer.named_parameters():
        for gate in parameter.chunk(3):
            if name.startswith("weight_hh"):
                torch.testing.assert_close(gate @ gate.T, torch.eye(6))
            elif name.startswith("bias"):
                assert not gate.any()


def test_an_lstms_forget_gate_begins_open() -> None:
    layer = recurrent(nn.LSTM(3, 2))
    assert layer.bias_ih_l0.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert not layer.bias_hh_l0.any()
