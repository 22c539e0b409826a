"""Heads with a client's own part: logits by hand, and no change where a client has none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedvision.errors import PluginError
from fedvision.experiment import Experiment
from fedvision.models.base import ImageModel
from fedvision.models.etf import simplex_etf
from fedvision.models.personalized_heads import PersonalizedHead, RealignedHead, neutral_names
from tests.experiments import tiny


def _filled(head: PersonalizedHead, own: bool) -> PersonalizedHead:
    """Rows of norms 5 and 10 with biases 1 and -1; own ones of norms 3 and 0 with biases 0.5 and 0."""
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 4.0], [6.0, 8.0]]))
        head.bias.copy_(torch.tensor([1.0, -1.0]))
        if own:
            head.personal.weight.copy_(torch.tensor([[0.0, 3.0], [0.0, 0.0]]))
            head.personal.bias.copy_(torch.tensor([0.5, 0.0]))
    return head.requires_grad_(False)


def test_the_personalized_head_adds_both_parts() -> None:
    x = torch.tensor([[1.0, 2.0]])
    head = PersonalizedHead(in_features=2, num_classes=2)
    assert _filled(head, own=False)(x).tolist() == [[12.0, 21.0]]
    assert _filled(head, own=True)(x).tolist() == [[12.0 + 6.5, 21.0]]
    assert head.generic(x).tolist() == [[12.0, 21.0]]


def test_the_realigned_head_has_equal_norms_or_those_of_the_own_head() -> None:
    """The mean norm is 7.5: 7.5 * 11 / 5 + 1; with an own head (1 + 3) 11 + 1 + 0.5 and (1 + 0) 22 - 1."""
    x = torch.tensor([[1.0, 2.0]])
    head = RealignedHead(in_features=2, num_classes=2)
    assert _filled(head, own=False)(x)[0].tolist() == pytest.approx([17.5, 15.5])
    assert _filled(head, own=True)(x)[0].tolist() == pytest.approx([45.5, 21.0])


def test_the_realigned_head_begins_as_its_fixed_frame() -> None:
    head = RealignedHead(in_features=6, num_classes=4, scale=2.0, seed=3)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    frame = simplex_etf(4, 6, sparse=0.6, seed=3)
    torch.testing.assert_close(head.fixed(x), 2.0 * x @ frame.T)
    torch.testing.assert_close(head(x), x @ frame.T, rtol=1e-3, atol=1e-4)
    assert "etf" not in head.state_dict()


@given(st.lists(st.booleans(), min_size=3, max_size=3), st.lists(st.booleans(), min_size=3, max_size=3))
def test_rows_of_zeros_stay_finite(rows: list[bool], own: list[bool]) -> None:
    head = RealignedHead(in_features=4, num_classes=3)
    with torch.no_grad():
        head.weight.mul_(torch.tensor(rows).unsqueeze(1))
        head.personal.weight.add_(torch.tensor(own).unsqueeze(1).float())
    x = torch.randn(2, 4, requires_grad=True)
    found = head(x)
    found.sum().backward()
    assert torch.isfinite(found).all()
    for parameter in (x, head.weight, head.personal.weight):
        assert torch.isfinite(parameter.grad).all()


def test_own_parts_alone_are_neutral() -> None:
    backbone = nn.Flatten()
    own = ImageModel(backbone, PersonalizedHead(in_features=2, num_classes=2))
    assert neutral_names(own) == {"head.personal.weight", "head.personal.bias"}
    assert neutral_names(ImageModel(backbone, nn.Linear(2, 2))) == frozenset()
    assert neutral_names(nn.Sequential(backbone)) == frozenset()


def test_a_frame_needs_as_many_features_as_classes() -> None:
    model = {"use": "cnn", "width": 4, "dense": 8, "head": "realigned"}
    with pytest.raises(PluginError, match=r"a simplex ETF of 10 classes needs .* not 8"):
        Experiment.build(tiny(model=model))
