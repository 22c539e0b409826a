"""Fed-GraB: one binary loss a class, whose positive and negative gradients a controller keeps in balance.

Xiao, Chen, Liu, Wang, Feng, Hao, Zhou, Wu, Yang, Liu 2023, "Fed-GraB: Federated Long-tailed Learning with
Self-Adjusting Gradient Balancer", NeurIPS 2023, arXiv 2310.07587. Each client minimises, s the sigmoid and
t_c 1 for the label's class and 0 for the others::

    sum_c  -u_c t_c log s(z_c) - (1 - t_c) log s(-z_c)

The weight u_c follows what class c has got so far (self-adjusting gradient balancer): G+_c and G-_c are the
sums, over the client's steps and rounds, of the absolute gradients of the batch's mean loss with respect to
z_c, of images of the class and of others. A rare class gets few positive ones and many negative ones. With e
= G-_c - G+_c after the newest step, e' and e'' after those before, a controller raises u_c until they are
equal::

    o   <- o + kp (e - e') + ki e + kd (e - 2 e' + e'')        incremental PID, kept within -100 and 100
    u_c <- (10 / 9) / (1 / 9 + exp(-0.05 o))                   1 at o = 0, between 0.007 and 9.5

Only rare classes are balanced, the others have u_c = 1. Which classes are rare is read off the federation's
head, in which the row of a frequent class is longer (direct prior analyser): with p_c = ||w_c|| / sum_j
||w_j||, the ``tail`` share of the classes with the smallest p_c. ``tail = 1`` balances all of them and ``tail
= 0`` none.

Source: the paper's abstract and the authors' code (github.com/ZackZikaiXiao/FedGraB); the paper's equations
were not at hand. What differs from the code: o is kept in its range, where the function that does so there
has no effect; the prior decides which classes are rare, where that program balances all classes and others
have the rare ones named; the head is trained, where it is left out of the optimiser there, so that its norms
would say nothing; the loss that is reported is the weighted one. A class that is rare for the first time
begins with o = 0.

The method has a loss of its own, so ``[loss]`` is left out. The class with the largest z is predicted.
Reports show softmax(z) as probabilities, which this loss does not train: ``evaluation.calibrate`` scales
them. A client keeps 5 C numbers. Messages are those of FedAvg, and a step costs no further pass. With
``training.accumulate`` the mean is over the images of a part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ClientError, ConfigError
from fedvision.inputs import Batch
from fedvision.losses.logits import is_label, precise
from fedvision.models.base import halves
from fedvision.ranges import check_range
from fedvision.training.blended_loss import instead
from fedvision.training.client_algorithm import ClientAlgorithm, numbers_sent, to_storage
from fedvision.types import ClientConfig, LossFn, State, TrainRequest

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_NEEDED_BY = "[strategy] use = 'fedgrab'"
_NUMBERS = ("tail", "kp", "ki", "kd")
_LARGEST = 100.0
"""Of o, either way."""


class Balancer:
    """The gradients that each class got, and the weights of its positive ones.

    Args:
        kp: Gain of the change of the difference.
        ki: Gain of the difference.
        kd: Gain of the change of its change.
        rare: bool [C], the classes that are balanced.
        memory: What ``state`` returned before; empty at first.
    """

    def __init__(self, kp: float, ki: float, kd: float, rare: torch.Tensor, memory: State) -> None:
        self._gains, self._rare = (kp, ki, kd), rare

        def kept(name: str) -> torch.Tensor:
            zeros = torch.zeros(len(rare), device=rare.device)
            found = memory.get(name)
            return zeros if found is None or found.shape != zeros.shape else zeros.copy_(found)

        self._positive, self._negative = kept("positive"), kept("negative")
        self._out, self._error, self._before = kept("out"), kept("error"), kept("before")

    def weights(self) -> torch.Tensor:
        """Take a step of the controller, and return the weights u [C] of positive gradients."""
        kp, ki, kd = self._gains
        error = self._negative - self._positive
        change = error - self._error
        moved = self._out + kp * change + ki * error + kd * (change - (self._error - self._before))
        self._out = torch.where(self._rare, moved.clamp(-_LARGEST, _LARGEST), 0.0)
        self._error, self._before = error, self._error
        return gain(self._out)

    def see(self, positive: torch.Tensor, negative: torch.Tensor) -> None:
        """Add a step's absolute gradients [C] of either kind."""
        self._positive = self._positive + positive
        self._negative = self._negative + negative

    def state(self) -> State:
        """Return what is to be remembered."""
        return {
            "positive": self._positive,
            "negative": self._negative,
            "out": self._out,
            "error": self._error,
            "before": self._before,
        }


class FedGraBClient(ClientAlgorithm):
    """The binary loss of each class with balanced gradients; the client keeps the balancer's numbers."""

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Find the rare classes by the head of the global model, and recall what classes got so far.

        Raises:
            ClientError: The request lacks a number.
            ConfigError: The head is not linear, or is not the federation's.
        """
        self._client, self._model, self._memory = request.client, model, memory
        numbers = numbers_sent(request, "Fed-GraB", *_NUMBERS)
        head = halves(model, _NEEDED_BY).head
        if not isinstance(head, nn.Linear):
            raise ConfigError(
                f"{_NEEDED_BY} reads frequencies off the rows of a linear head, and this network's is a "
                f"{type(head).__name__}; use another network or strategy"
            )
        if "head.weight" not in request.state:
            raise ConfigError(
                f"{_NEEDED_BY} reads frequencies off the federation's head, and 'head.weight' is not shared; "
                "leave it out of model.personal and model.frozen"
            )
        rare = rare_classes(request.state["head.weight"], numbers["tail"]).to(head.weight.device)
        self._balancer = Balancer(numbers["kp"], numbers["ki"], numbers["kd"], rare, memory)

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the weighted binary losses of each example [B], summed over classes.

        Raises:
            ClientError: The examples have not one label each.
        """
        logits = model(x)
        if labels.dim() != 1 or logits.dim() != 2:
            raise ClientError(
                self._client,
                "training",
                f"Fed-GraB needs one label an image, not logits {list(logits.shape)} with labels "
                f"{list(labels.shape)}",
            )
        z = precise(logits)
        # Blended as mixup blends a loss: the binary loss is linear in t.
        t = instead(task_loss, lambda outputs, of: is_label(outputs, of).to(outputs.dtype))(z, labels)
        weights = self._balancer.weights().to(z.dtype)
        with torch.no_grad():
            s = z.sigmoid()
            self._balancer.see((weights * t * (1 - s)).mean(0).float(), ((1 - t) * s).mean(0).float())
        return (-weights * t * F.logsigmoid(z) - (1 - t) * F.logsigmoid(-z)).sum(dim=1)

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Return the balancer's numbers; with a lost model the client keeps those before."""
        sound = all(bool(torch.isfinite(p).all()) for p in self._model.parameters())
        return {}, to_storage(self._balancer.state()) if sound else self._memory


class FedGraB(FedAvg):
    """FedAvg with one binary loss a class, the gradients of rare classes kept in balance by a controller.

    Args:
        tail: Share of the classes that are balanced, those with the shortest rows of the head,
            0 <= tail <= 1; 0 is the plain binary loss.
        kp: Gain of the change of the difference of negative and positive gradients, >= 0.
        ki: Gain of the difference, >= 0.
        kd: Gain of the change of its change, >= 0.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedGraBClient

    def __init__(
        self,
        *,
        tail: float = 1.0,
        kp: float = 10.0,
        ki: float = 0.01,
        kd: float = 0.1,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, at_most=1, tail=tail)
        check_range(at_least=0, kp=kp, ki=ki, kd=kd)
        self.tail, self.kp, self.ki, self.kd = tail, kp, ki, kd

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Look at the loss.

        Raises:
            ConfigError: The experiment names one.
        """
        if config.loss.use != "cross-entropy":
            raise ConfigError(
                f"{_NEEDED_BY} has a loss of its own, beside which [loss] use = {config.loss.use!r} would do "
                "nothing; leave [loss] out, or take another strategy"
            )

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send the four numbers."""
        return ClientConfig(numbers={name: getattr(self, name) for name in _NUMBERS})


def gain(out: torch.Tensor) -> torch.Tensor:
    """Return ``(10 / 9) / (1 / 9 + exp(-0.05 o))`` of a controller's outputs [C]."""
    return (10 / 9) / (1 / 9 + torch.exp(-0.05 * out))


def rare_classes(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Return which classes have the shortest rows, bool [C].

    Args:
        weight: Of a linear head, [C, D].
        share: Of the classes, 0 <= share <= 1; a part of a class counts as a class.
    """
    norms = torch.linalg.vector_norm(weight.double(), dim=1)
    found = torch.zeros(len(weight), dtype=torch.bool)
    found[norms.argsort(stable=True)[: math.ceil(share * len(weight) - 1e-9)]] = True
    return found
