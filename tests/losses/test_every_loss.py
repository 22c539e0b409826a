"""Every built-in loss: per example, finite whatever the counts, alike one by one and stacked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap
from torch.nn import functional as F

from fedvision import registry
from fedvision.errors import PluginError
from fedvision.losses.counts import mixed
from fedvision.losses.detection import form
from fedvision.types import LossFn, PluginSpec

NAMES = sorted(name for name, loss in registry.BUILTINS["loss"].items() if "classification" in loss.tasks)
# What makes a loss cross-entropy where counts are equal; the others are it with their defaults.
NEUTRAL: dict[str, dict[str, Any]] = {
    "focal": {"gamma": 0.0},
    "class-balanced-focal": {"gamma": 0.0},
    "ldam": {"max_margin": 0.0, "scale": 1.0},
}
# Further arguments under which every property must hold too.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("weighted", {"scheme": "square-root"}),
    ("weighted", {"scheme": "effective-number", "beta": 0.9}),
    ("focal", {"gamma": 0.5}),
    ("focal", {"gamma": 0.0, "scheme": "inverse"}),
    ("ldam", {"drw_round": 1, "scale": 2.0}),
    ("logit-adjusted", {"tau": 2.0, "floor": 1e-6}),
    ("fedlc", {"tau": 3.0, "floor": 0.01}),
    ("fedrs", {"alpha": 0.0, "min_count": 3}),
    ("fedlf", {"alpha": 0.0}),
]
COUNTS: dict[str, list[Any]] = {
    "long-tail": [1000, 100, 10, 1],
    "vacant": [40, 0, 3, 0],
    "one-class": [0, 0, 57, 0],
    "nothing": [0, 0, 0, 0],
    "millions": [5_000_000, 1, 0, 2],
    "noisy": [12.4, -3.7, 0.2, 900.1],
}
COUNT = st.just(0) | st.integers(1, 10**6)
every = pytest.mark.parametrize(("name", "args"), VARIANTS, ids=str)


def build(name: str, counts: torch.Tensor | list[Any], **args: Any) -> LossFn:
    """Build a loss as a client does."""
    spec = PluginSpec(use=name, args=args)
    loss: LossFn = registry.build("loss", spec, counts=torch.as_tensor(counts), round=3, rounds=9)
    return loss


def batch(
    *shape: int, classes: int = 4, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [*shape, C] and labels [*shape]."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(*shape, classes, generator=generator, dtype=torch.float64) * 3
    return logits.to(dtype), torch.randint(0, classes, shape, generator=generator)


@every
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_values_and_gradients_are_finite_at_extreme_logits(
    name: str, args: dict[str, Any], counts: list[float]
) -> None:
    # Every pair of a label (which may be vacant) and one logit far above or below the rest.
    cases = [(y, c, far) for y in range(4) for c in range(4) for far in (-1e4, -60.0, 0.0, 60.0, 1e4)]
    logits = torch.zeros(len(cases), 4)
    for row, (_, c, far) in enumerate(cases):
        logits[row, c] = far
    logits.requires_grad_()
    losses = build(name, counts, **args)(logits, torch.tensor([y for y, _, _ in cases]))
    losses.sum().backward()
    assert losses.shape == (len(cases),)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@every
@settings(max_examples=15)
@given(counts=st.lists(st.just(0) | st.integers(1, 10**6), min_size=1, max_size=6), data=st.data())
def test_values_and_gradients_are_finite_for_any_counts(
    name: str, args: dict[str, Any], counts: list[int], data: st.DataObject
) -> None:
    numbers = st.lists(st.floats(-1e4, 1e4), min_size=len(counts), max_size=len(counts))
    logits = torch.tensor([data.draw(numbers)], dtype=torch.float32, requires_grad=True)
    label = data.draw(st.integers(0, len(counts) - 1))
    loss = build(name, counts, **args)(logits, torch.tensor([label]))
    loss.sum().backward()
    assert logits.grad is not None
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.slow
@settings(max_examples=60)
@given(
    pairs=st.lists(st.tuples(COUNT, COUNT), min_size=2, max_size=6),
    share=st.floats(0, 1),
    data=st.data(),
)
def test_vacant_classes_stay_finite_under_every_prior(
    pairs: list[tuple[int, int]], share: float, data: st.DataObject
) -> None:
    """Counts of the federation, of a client that lacks classes, and of both mixed; every loss there is."""
    federation, own = (torch.tensor(column) for column in zip(*pairs, strict=True))
    classes = len(pairs)
    numbers = st.lists(st.floats(-1e4, 1e4), min_size=classes, max_size=classes)
    start = torch.tensor([data.draw(numbers)], dtype=torch.float32)
    label = data.draw(st.integers(0, classes - 1))
    for counts in (federation, own, mixed(federation, own, share)):
        assert (counts >= 0).all()
        for name, builtin in registry.BUILTINS["loss"].items():
            logits, targets = start.clone().requires_grad_(), torch.tensor([label])
            criterion, outputs = build(name, counts), logits
            if "multi-label" in builtin.tasks:
                targets = F.one_hot(targets, classes)
            elif builtin.tasks == {"segmentation"}:  # an image of one pixel
                outputs, targets = logits[..., None, None], targets[:, None, None]
            elif builtin.tasks == {"detection"}:
                (form_of,) = criterion.forms  # type: ignore[attr-defined]
                criterion = form(criterion, form_of)
                targets = F.one_hot(targets, classes) if form_of == "sigmoid" else targets
                outputs = logits if form_of == "sigmoid" else F.pad(logits, (0, 1))
            loss = criterion(outputs, targets)
            loss.sum().backward()
            assert loss.isfinite().all()
            assert logits.grad is not None
            assert logits.grad.isfinite().all()


@every
@pytest.mark.parametrize("counts", [COUNTS["vacant"], COUNTS["long-tail"]], ids=["vacant", "long-tail"])
def test_the_gradient_is_that_of_the_value(name: str, args: dict[str, Any], counts: list[float]) -> None:
    loss = build(name, counts, **args)
    logits, labels = batch(5, dtype=torch.float64)
    logits = logits / 10
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_())
    assert loss(logits, labels).dtype == torch.float64


@every
def test_examples_are_independent(name: str, args: dict[str, Any]) -> None:
    loss = build(name, COUNTS["vacant"], **args)
    logits, labels = batch(6)
    logits.requires_grad_()
    losses = loss(logits, labels)
    (only_two,) = torch.autograd.grad(losses[2], logits)
    assert only_two[[0, 1, 3, 4, 5]].abs().max() == 0
    keep = torch.tensor([True, False, True, True, False, False])
    assert torch.equal(losses[keep], loss(logits[keep], labels[keep]))
    assert loss(logits[:0], labels[:0]).shape == (0,)


@every
def test_a_call_changes_nothing(name: str, args: dict[str, Any]) -> None:
    counts, (logits, labels) = torch.tensor(COUNTS["vacant"], dtype=torch.float64), batch(6)
    copies = counts.clone(), logits.clone(), labels.clone()
    loss = build(name, counts, **args)
    first = loss(logits, labels)
    assert all(torch.equal(a, b) for a, b in zip(copies, (counts, logits, labels), strict=True))
    counts.fill_(1)
    assert torch.equal(first, loss(logits, labels))


@every
def test_the_order_of_the_classes_does_not_matter(name: str, args: dict[str, Any]) -> None:
    logits, labels = batch(6)
    counts, order = torch.tensor(COUNTS["vacant"]), torch.tensor([2, 0, 3, 1])
    expected = build(name, counts, **args)(logits, labels)
    moved = build(name, counts[order], **args)(logits[:, order], order.argsort()[labels])
    torch.testing.assert_close(moved, expected)


@every
def test_clients_under_vmap_and_stacked_are_as_one_by_one(name: str, args: dict[str, Any]) -> None:
    counts = torch.tensor([[9, 0, 4, 1], [0, 0, 0, 7], [5, 5, 5, 5], [1000, 1, 0, 30]])
    logits, labels = batch(4, 6)

    def mean(z: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return build(name, n, **args)(z, y).mean()

    values = torch.stack([mean(*one) for one in zip(logits, labels, counts, strict=True)])
    torch.testing.assert_close(vmap(mean)(logits, labels, counts), values)
    stacked = build(name, counts, **args)(logits, labels)
    assert stacked.shape == (4, 6)
    torch.testing.assert_close(stacked.mean(1), values)
    slopes = torch.stack([grad(mean)(*one) for one in zip(logits, labels, counts, strict=True)])
    torch.testing.assert_close(vmap(grad(mean))(logits, labels, counts), slopes)


@every
def test_one_loss_serves_inside_and_outside_of_vmap(name: str, args: dict[str, Any]) -> None:
    loss = build(name, COUNTS["vacant"], **args)
    logits, labels = batch(3, 6)
    slope = vmap(grad(lambda z, y: loss(z, y).sum()))
    first = slope(logits, labels)
    leaf = logits[0].clone().requires_grad_()
    loss(leaf, labels[0]).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, first[0])
    torch.testing.assert_close(slope(logits, labels), first)
    torch.testing.assert_close(
        loss(logits, labels), torch.stack([loss(*o) for o in zip(logits, labels, strict=True)])
    )


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name: str, args: dict[str, Any], dtype: torch.dtype) -> None:
    loss = build(name, COUNTS["vacant"], **args)
    logits, labels = batch(6, dtype=dtype)
    expected = loss(logits.float(), labels)
    assert torch.equal(loss(logits, labels), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(logits, labels)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, expected)


@every
def test_a_loss_follows_the_precision_and_the_device_of_the_logits(name: str, args: dict[str, Any]) -> None:
    loss = build(name, COUNTS["vacant"], **args)
    exact, labels = batch(6, dtype=torch.float64)
    before = loss(exact, labels)
    assert loss(exact.float(), labels).dtype == torch.float32
    assert loss(exact.to("meta"), labels.to("meta")).device.type == "meta"
    assert torch.equal(loss(exact, labels), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 1, 250])
def test_equal_counts_make_it_cross_entropy(name: str, count: int) -> None:
    args = NEUTRAL.get(name, {}) | ({"alpha": 1.0} if name == "fedrs" else {})
    logits, labels = batch(8, dtype=torch.float64)
    ours = build(name, [count] * 4, **args)(logits, labels)
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, reduction="none"))


@every
def test_a_single_class_costs_nothing(name: str, args: dict[str, Any]) -> None:
    logits = torch.tensor([[3.0], [-40.0]], requires_grad=True)
    losses = build(name, [5], **args)(logits, torch.tensor([0, 0]))
    losses.sum().backward()
    assert losses.tolist() == [0, 0]
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("name", "args", "problem"),
    [
        ("weighted", {"scheme": "linear"}, "scheme must be one of none, inverse, .*, not 'linear'"),
        ("weighted", {"beta": 1.0}, "beta must be >= 0 and < 1, not 1.0"),
        ("weighted", {"scheme": "effective-number", "beta": -0.1}, "beta must be >= 0 and < 1, not -0.1"),
        ("focal", {"gamma": -1.0}, "gamma must be >= 0, not -1.0"),
        ("focal", {"scheme": "linear"}, "scheme must be one of none, inverse, .*, not 'linear'"),
        ("ldam", {"max_margin": -0.5}, "max_margin must be >= 0, not -0.5"),
        ("ldam", {"scale": 0}, "scale must be > 0, not 0"),
        ("ldam", {"drw_round": -1}, "drw_round must be >= 0, not -1"),
        ("ldam", {"beta": 1.5}, "beta must be >= 0 and < 1, not 1.5"),
        ("balanced-softmax", {"floor": 0}, "floor must be > 0, not 0"),
        ("logit-adjusted", {"tau": -1}, "tau must be >= 0, not -1"),
        ("logit-adjusted", {"floor": -2.0}, "floor must be > 0, not -2.0"),
        ("fedlc", {"tau": float("nan")}, "tau must be >= 0, not nan"),
        ("fedlc", {"floor": float("inf")}, "floor must be > 0 and finite, not inf"),
        ("fedrs", {"alpha": 1.5}, "alpha must be >= 0 and <= 1, not 1.5"),
        ("fedrs", {"min_count": 0}, "min_count must be >= 1, not 0"),
        ("fedlf", {"alpha": -0.1}, "alpha must be >= 0 and <= 1, not -0.1"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_one_sentence(name: str, args: dict[str, Any], problem: str) -> None:
    with pytest.raises(PluginError, match=rf"^\[loss\] use = '{name}': {problem}"):
        build(name, [3, 2, 1], **args)
