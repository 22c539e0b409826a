"""What losses do with logits: torch's own cross-entropy to the bit, and numbers that follow the logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedvision.losses.logits import PerClass, cross_entropy_of, is_label, of_label, precise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_and_its_gradient_are_torchs_to_the_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = (torch.randn(64, 10, generator=generator) * 5).to(dtype).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    labels = torch.randint(0, 10, (64,), generator=generator)
    values, expected = cross_entropy_of(ours, labels), F.cross_entropy(theirs, labels, reduction="none")
    assert torch.equal(values, expected)
    values.mean().backward()
    expected.mean().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision_is_float32_or_wider(given: torch.dtype, computed: torch.dtype) -> None:
    assert precise(torch.zeros(2, 3, dtype=given)).dtype == computed


def test_labels_find_their_logits() -> None:
    logits, labels = torch.arange(6.0).reshape(2, 3), torch.tensor([2, 0])
    assert of_label(logits, labels).tolist() == [2, 3]
    assert is_label(logits, labels).tolist() == [[False, False, True], [True, False, False]]


def test_numbers_per_class_are_copied_only_when_the_logits_change() -> None:
    numbers = PerClass(torch.tensor([1.0, 1 / 3], dtype=torch.float64))
    single, double = torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.float64)
    first = numbers.beside(single)
    assert first.dtype == torch.float32
    assert numbers.beside(single) is first
    # Going back loses nothing of what float32 could not hold.
    assert numbers.beside(double).tolist() == [[1, 1 / 3]]


def test_numbers_of_labels_for_one_client_and_for_several() -> None:
    labels = torch.tensor([[1, 0], [1, 1]])
    logits = torch.zeros(2, 2, 2)
    assert PerClass(torch.tensor([5.0, 7.0])).at(labels[0], logits[0]).tolist() == [7, 5]
    assert PerClass(torch.tensor([5.0, 7.0])).at(labels, logits).tolist() == [[7, 5], [7, 7]]
    each = PerClass(torch.tensor([[5.0, 7.0], [1.0, 2.0]]))
    assert each.at(labels, logits).tolist() == [[7, 5], [2, 2]]
