"""Weights by hand, their mean, and the weighted cross-entropy against torch's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fedvision.losses.weighting import class_weights, cross_entropy, weighted

SCHEMES = ("none", "inverse", "square-root", "effective-number")


def test_cross_entropy_by_hand() -> None:
    loss = cross_entropy(torch.tensor([1, 99]))
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    values = loss(logits, torch.tensor([0, 1]))
    assert values.tolist() == pytest.approx([math.log(2), math.log(4)])


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("none", [1, 1, 1]),
        # 1/1, 1/4, 1/16 have mean 7/16.
        ("inverse", [16 / 7, 4 / 7, 1 / 7]),
        # 1, 1/2, 1/4 have mean 7/12.
        ("square-root", [12 / 7, 6 / 7, 3 / 7]),
        # beta = 1/2: effective numbers 1, 15/8, 65535/32768.
        ("effective-number", None),
    ],
)
def test_weights_by_hand(scheme: str, expected: list[float] | None) -> None:
    if expected is None:
        raw = [1, 8 / 15, 32768 / 65535]
        expected = [3 * w / sum(raw) for w in raw]
    weights = class_weights(torch.tensor([1, 4, 16]), scheme, beta=0.5)
    assert weights.tolist() == pytest.approx(expected, rel=1e-12)
    # A vacant class weighs as the rarest other and leaves the others' weights as they are.
    vacant = class_weights(torch.tensor([1, 4, 0, 16]), scheme, beta=0.5)
    assert vacant.tolist() == pytest.approx([*expected[:2], expected[0], expected[2]], rel=1e-12)


@given(
    counts=st.lists(st.just(0) | st.integers(1, 10**6), min_size=1, max_size=12),
    scheme=st.sampled_from(SCHEMES),
    beta=st.sampled_from([0.0, 0.5, 0.9999, 1 - 1e-9]),
)
def test_mean_and_order_of_class_weights(counts: list[int], scheme: str, beta: float) -> None:
    """Weights have mean one over present classes and fall with the count."""
    n = torch.tensor(counts)
    weights = class_weights(n, scheme, beta)
    assert (weights > 0).all()
    assert weights.isfinite().all()
    present = n > 0
    mean = weights[present].mean() if present.any() else weights.mean()
    assert float(mean) == pytest.approx(1)
    assert (weights[n.argsort()].diff() <= 1e-9).all()
    if present.any():
        torch.testing.assert_close(weights[~present], weights[present].max().expand(int((~present).sum())))


def test_effective_numbers_reach_from_equal_to_inverse() -> None:
    counts = torch.tensor([500, 50, 5])
    assert class_weights(counts, "effective-number", 0.0).tolist() == pytest.approx([1, 1, 1])
    inverse = class_weights(counts, "inverse")
    torch.testing.assert_close(
        class_weights(counts, "effective-number", 1 - 1e-12), inverse, rtol=1e-8, atol=0
    )


def test_effective_numbers_keep_their_digits_where_beta_is_near_one() -> None:
    # The plain formula in float32 knows 1 - beta to three digits only.
    weights = class_weights(torch.tensor([1, 2]), "effective-number", 0.9999)
    assert float(weights[0] / weights[1]) == pytest.approx(1.9999, rel=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weighted_is_torchs_weighted_cross_entropy(scheme: str) -> None:
    counts = torch.tensor([30, 7, 0, 2])
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 4, (9,), generator=generator)
    ours = weighted(counts, scheme=scheme)(logits, labels)
    plain = F.cross_entropy(logits, labels, weight=class_weights(counts, scheme), reduction="none")
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), logits), torch.autograd.grad(plain.sum(), logits)
    )
