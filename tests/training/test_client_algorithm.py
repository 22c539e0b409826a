"""The hooks of a client half: which of them exclude training several clients together."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from fedvision.algorithms.fedprox import FedProxClient
from fedvision.algorithms.scaffold import ScaffoldClient
from fedvision.inputs import Batch
from fedvision.training.client_algorithm import ClientAlgorithm, copy_like, groups_sent, unstackable_reason
from fedvision.types import LossFn, State


class _OwnGradients(FedProxClient):
    def after_backward(self) -> None: ...


class _OwnLoss(ClientAlgorithm):
    def loss(
        self, model: nn.Module, x: torch.Tensor, labels: torch.Tensor, task_loss: LossFn
    ) -> torch.Tensor:
        return 2 * super().loss(model, x, labels, task_loss)


class _Surveying(ClientAlgorithm):
    def survey(self, model: nn.Module, batches: Iterable[tuple[Batch, torch.Tensor]]) -> None: ...


class _Drawing(ClientAlgorithm):
    draws = True


@pytest.mark.parametrize("kind", [ClientAlgorithm, FedProxClient, ScaffoldClient])
def test_formulas_on_gradients_are_stacked(kind: type[ClientAlgorithm]) -> None:
    assert unstackable_reason(kind) is None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (_OwnGradients, "_OwnGradients overrides after_backward, which has no form for several clients"),
        (_OwnLoss, "the loss of _OwnLoss calls the model, which several clients do not share"),
        (_Surveying, "_Surveying goes through a client's images, for which it needs the model alone"),
        (_Drawing, "_Drawing draws numbers, and each client has a stream of its own"),
    ],
)
def test_notice_on_hooks_of_one_client(kind: type[ClientAlgorithm], reason: str) -> None:
    assert unstackable_reason(kind) == reason


def test_the_default_loss_is_the_tasks() -> None:
    model = nn.Linear(2, 3)
    x, labels = torch.ones(4, 2), torch.tensor([0, 1, 2, 0])

    def task_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits[range(4), labels]

    found = ClientAlgorithm().loss(model, x, labels, task_loss)
    assert torch.equal(found, model(x)[range(4), labels])


class _Sending(FedProxClient):
    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        return {"seen": {}}, {}


class _Saying(_Sending):
    sends = ("seen",)


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        (ClientAlgorithm, ()),
        (FedProxClient, ()),
        (ScaffoldClient, ("control",)),
        (_Sending, None),
        (_Saying, ("seen",)),
    ],
)
def test_what_a_class_sends_is_known_unless_it_overrides_finish_alone(
    kind: type[ClientAlgorithm], groups: tuple[str, ...] | None
) -> None:
    assert groups_sent(kind) == groups


def test_a_tensor_of_another_shape_is_not_spread_over_a_parameter() -> None:
    with pytest.raises(ValueError, match=r"a tensor for a parameter \[2, 3\] is \[3\]"):
        copy_like(torch.ones(3), nn.Parameter(torch.zeros(2, 3)))
