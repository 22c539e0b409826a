"""Losses of detectors' places: hand-computed, finite for any counts, in the form that a network needs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from fedvision import registry
from fedvision.errors import ConfigError, PluginError
from fedvision.losses.detection import equalization, form, seesaw, sigmoid_focal
from fedvision.losses.weighting import class_weights, cross_entropy
from fedvision.types import HeadForm, LossFn, PluginSpec

FORMS: dict[str, tuple[HeadForm, ...]] = {
    "cross-entropy": ("sigmoid", "softmax"),
    "weighted": ("sigmoid", "softmax"),
    "sigmoid-focal": ("sigmoid",),
    "class-balanced-sigmoid-focal": ("sigmoid",),
    "equalization": ("sigmoid",),
    "seesaw": ("softmax",),
}
COUNTS = torch.tensor([1000, 100, 10, 0])


def wanted(labels: list[int], classes: int = 4) -> torch.Tensor:
    """Return one-hot rows, of nothing where the label is ``classes``."""
    return F.one_hot(torch.tensor(labels), classes + 1)[:, :classes].float()


def build(name: str, counts: Any, **args: Any) -> LossFn:
    loss: LossFn = registry.build("loss", PluginSpec(use=name, args=args), counts=torch.as_tensor(counts))
    return loss


def test_all_of_them_are_here() -> None:
    assert {use for use, one in registry.BUILTINS["loss"].items() if "detection" in one.tasks} == set(FORMS)


def test_focal_is_torchvisions() -> None:
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    y = wanted([n % 5 for n in range(50)]).double()
    for alpha, gamma in ((0.25, 2.0), (0.6, 0.5), (0.5, 0.0)):
        loss = sigmoid_focal(COUNTS, alpha=alpha, gamma=gamma)
        expected = sigmoid_focal_loss(z, y, alpha=alpha, gamma=gamma).sum(1)
        assert torch.allclose(loss(z, y), expected, rtol=1e-9)
    # gamma = 0 and alpha = 1/2: half the binary cross-entropy.
    plain = F.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1)
    assert torch.allclose(sigmoid_focal(COUNTS, alpha=0.5, gamma=0.0)(z, y), plain / 2)


def test_focal_by_hand() -> None:
    z, y = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[1.0, 0.0]])  # p = 3/4 and 1/2
    expected = -0.25 * (1 / 4) ** 2 * math.log(3 / 4) - 0.75 * (1 / 2) ** 2 * math.log(1 / 2)
    assert sigmoid_focal(torch.ones(2))(z, y).item() == pytest.approx(expected, rel=1e-6)


def test_class_balanced_focal_weighs_each_class_by_its_boxes() -> None:
    z, y = torch.zeros(1, 4), wanted([2])
    weights = class_weights(COUNTS, "effective-number")
    each = torch.tensor([0.75, 0.75, 0.25, 0.75]) * 0.25 * math.log(2)
    found = build("class-balanced-sigmoid-focal", COUNTS)(z, y)
    assert found.item() == pytest.approx((weights * each).sum().item(), rel=1e-6)


def test_weighted_weighs_each_class_by_its_boxes_and_background_as_one() -> None:
    weights = class_weights(COUNTS, "square-root")
    loss = build("weighted", COUNTS, scheme="square-root")
    found = form(loss, "sigmoid")(torch.zeros(2, 4), wanted([2, 4]))
    assert found.tolist() == pytest.approx([weights.sum().item() * math.log(2)] * 2)
    found = form(loss, "softmax")(torch.zeros(3, 5), torch.tensor([0, 2, 4]))
    expected = [weights[0].item() * math.log(5), weights[2].item() * math.log(5), math.log(5)]
    assert found.tolist() == pytest.approx(expected)
    assert weights[2] > 2 * weights[1] > 4 * weights[0]


def test_equalization_by_hand() -> None:
    # Classes 2 and 3 are rare: 10 of 1,110 boxes; with class 1 they would be 110.
    loss = equalization(COUNTS, rare_share=0.05)
    z = torch.zeros(3, 4)
    found = loss(z, wanted([0, 2, 4]))
    # At an object of class 0 the rare ones are spared, at one of class 2 only class 3, at background nobody.
    assert found.tolist() == pytest.approx([2 * math.log(2), 3 * math.log(2), 4 * math.log(2)])
    assert equalization(COUNTS, rare_share=0.1)(z, wanted([0, 2, 4])).tolist() == pytest.approx(
        [math.log(2), 2 * math.log(2), 4 * math.log(2)], rel=1e-6
    )
    equal = equalization(torch.full((4,), 7), rare_share=0.2)(z, wanted([0, 2, 4]))
    assert equal.tolist() == pytest.approx([4 * math.log(2)] * 3)


def test_seesaw_by_hand() -> None:
    counts = torch.tensor([16, 4])
    z = torch.tensor([[0.0, math.log(2.0), 0.0], [0.0, math.log(2.0), 0.0], [0.0, math.log(2.0), 0.0]])
    found = seesaw(counts, p=0.5, q=2.0)(z, torch.tensor([0, 1, 2]))  # shares 1/4, 1/2, 1/4
    # Object of class 0: class 1 has M = (4 / 16)^0.5 = 1/2 and C = (2)^2 = 4, so its term is doubled.
    assert found[0].item() == pytest.approx(math.log(1 + 2 * 2 + 1), rel=1e-6)
    # Object of class 1: class 0 has more boxes, M = 1, and is less probable, C = 1.
    assert found[1].item() == pytest.approx(math.log(1 + 2 + 1) - math.log(2), rel=1e-6)
    # Background: nothing is changed.
    assert found[2].item() == pytest.approx(math.log(4), rel=1e-6)


def test_the_compensation_of_seesaw_has_no_gradient() -> None:
    z = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    loss = seesaw(torch.tensor([16, 4]), p=0.0, q=2.0)
    (found,) = torch.autograd.grad(loss(z, torch.tensor([0])).sum(), z)
    p = z.detach().softmax(1)[0]
    other = (z.detach()[0, 1] + 2 * (p[1] / p[0]).log()).exp()
    shares = torch.stack([torch.tensor(1.0), other, torch.tensor(1.0)])
    expected = shares / shares.sum() - torch.tensor([1.0, 0.0, 0.0])
    assert torch.allclose(found[0], expected, atol=1e-6)


def test_without_strength_losses_are_cross_entropy() -> None:
    z = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(9) % 5
    assert torch.allclose(
        seesaw(COUNTS, p=0.0, q=0.0)(z, labels), F.cross_entropy(z, labels, reduction="none")
    )
    y = wanted((torch.arange(9) % 5).tolist())
    plain = form(cross_entropy(COUNTS), "sigmoid")
    expected = F.binary_cross_entropy_with_logits(z[:, :4], y, reduction="none").sum(1)
    assert torch.allclose(plain(z[:, :4], y), expected)
    assert torch.allclose(equalization(torch.tensor([5, 5, 5, 5]), rare_share=0.0)(z[:, :4], y), expected)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in FORMS.items() for kind in kinds])
@given(
    counts=st.lists(st.sampled_from([0, 1, 7, 10**6]) | st.floats(-3, 50), min_size=4, max_size=4),
    scale=st.sampled_from([0.1, 30.0, 1e4]),
)
def test_losses_and_gradients_are_finite_whatever_the_counts(
    name: str, kind: HeadForm, counts: list[float], scale: float
) -> None:
    loss = form(build(name, counts), kind)
    z = scale * torch.randn(2, 6, 4 + (kind == "softmax"), generator=torch.Generator().manual_seed(2))
    z.requires_grad_(True)
    labels = torch.arange(6).expand(2, -1) % 5
    targets = labels if kind == "softmax" else F.one_hot(labels, 5)[..., :4].float()
    found = loss(z, targets)
    assert found.shape == (2, 6)
    assert found.isfinite().all()
    assert (found >= -1e-6).all()
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert gradient.isfinite().all()
    # One by one they are what they are together.
    assert torch.allclose(loss(z[1:, 3:4], targets[1:, 3:4]), found[1:, 3:4], rtol=1e-5, atol=1e-5)


def test_a_loss_of_the_other_form_is_refused() -> None:
    for loss, kind in ((sigmoid_focal(COUNTS), "softmax"), (seesaw(COUNTS), "sigmoid")):
        with pytest.raises(
            ConfigError, match=r"\[loss\] is for a network with a s(igmoid|oftmax) .*this one has"
        ):
            form(loss, kind)  # type: ignore[arg-type]


def test_a_loss_of_ones_own_is_taken_as_it_is() -> None:
    def own(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits.sum(-1)

    assert form(own, "sigmoid") is own
    assert form(own, "softmax") is own


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("sigmoid-focal", {"alpha": 1.0}),
        ("sigmoid-focal", {"gamma": -1.0}),
        ("equalization", {"rare_share": 1.0}),
        ("seesaw", {"p": -0.1}),
        ("seesaw", {"q": math.nan}),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, args: dict[str, float]) -> None:
    with pytest.raises(PluginError, match=next(iter(args))):
        build(name, COUNTS, **args)
