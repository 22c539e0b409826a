"""CReFF: FedAvg, and a head that the server trains on features which it learns from gradients by class.

Shang, Lu, Huang, Wang 2022, "Federated Learning on Heterogeneous and Long-Tailed Data via Classifier
Re-Training with Federated Features", arXiv 2204.13399; authors' code: github.com/shangxinyi/CReFF-FL. The
head suffers most from a long tail. A head with equally many features of each class would not, and the
clients' features need not leave them for that: from the mean gradient of each class, which they send::

    g_c = 1 / n_c  sum_{i: y_i = c}  d CE(h z_i, c) / dh      h = (W, b) the head, z_i features of image i

the server learns ``samples`` federated features F_c of each class, kept over the rounds, whose gradient
points the same way: ``match_steps`` steps of gradient descent on the sum over classes of the cosine
distances of the rows of dW and of db. Then it trains a head anew, for ``steps`` steps, on the federated
features.

As in the authors' code, clients go on training from FedAvg's model and its head. The new head is the one at
which the next gradients are taken, and after the last round it takes the place of FedAvg's.

Differences. Gradients are queried after a round's training, of the new model, and not by the round's cohort
at the model that it begins with: the features belong to the backbone that the new head is used with. Clients
send sums, so that g_c is over all images of a class and can be masked; the paper takes the mean of the
clients' means. Each image counts once and unaugmented, where the code draws 32 of a class ten times. The
code trains the head for 300 passes in mini-batches of 32, 9,600 steps at ten classes, from random values;
here 300 steps on mini-batches of 256 with momentum were as good on Fashion-MNIST with a long tail. The head
begins at zero and is trained on the classes that some client had so far, where the code also takes the
random features of the others. The model that is measured before the last round is FedAvg's.

Costs: each due round, one forward pass of every client over its images, C^2 (D + 1) + C numbers from each
client and C (D + 1) to it; on the server 100 steps on C ``samples`` features of D numbers, of C^2
``samples`` D multiplications each a few times: with C = 10 and D = 256 well under a second, with C = 100 and
D = 512 tens of seconds. ``every`` makes fewer rounds due.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.algorithms.base import Answer, ServerContext
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.last_round import check_last_round
from fedvision.errors import ConfigError, RunError
from fedvision.models.base import ImageModel, halves
from fedvision.ranges import check_range
from fedvision.training.statistics import LocalData
from fedvision.types import Query, State

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_NEEDED_BY = "[strategy] use = 'creff'"
_MOST = 1 << 25
"""Numbers of the gradients, 256 MiB."""
_EPSILON = 1e-6


def head_gradients(*, model: nn.Module, data: LocalData, tensors: State) -> dict[str, torch.Tensor]:
    """Sums over a client's images, by class, of the gradients of the cross-entropy by a linear head.

    Args:
        model: The network.
        data: The images.
        tensors: ``weight`` [C, D] and ``bias`` [C] of the head at which the gradients are taken; empty for
            the model's own.

    Returns:
        ``count`` [C], and by the images' class first ``weight`` [C, C, D] and ``bias`` [C, C].

    Raises:
        ConfigError: The network has no backbone and linear head with a row for each class, the images have
            several labels, or the gradients are too large.
    """
    head = _linear_head(halves(model, _NEEDED_BY), data.num_classes)
    weight = tensors.get("weight", head.weight.detach()).cpu().double()
    bias = tensors.get("bias", torch.zeros(len(weight)) if head.bias is None else head.bias.detach())
    bias = bias.cpu().double()
    sums = {
        "count": torch.zeros(len(weight), dtype=torch.int64),
        "weight": torch.zeros(len(weight), *weight.shape, dtype=torch.float64),
        "bias": torch.zeros(len(weight), len(weight), dtype=torch.float64),
    }
    for narrow, labels in data.features():
        if labels.dim() != 1:
            raise ConfigError(f"{_NEEDED_BY} needs one label an image; use another strategy for this task")
        features, own = narrow.double(), labels.long()
        excess = (features @ weight.T + bias).softmax(dim=1) - F.one_hot(own, len(weight))
        sums["count"] += torch.bincount(own, minlength=len(weight))
        sums["bias"].index_add_(0, own, excess)
        for label in torch.nonzero(torch.bincount(own)).flatten().tolist():
            rows = own == label
            sums["weight"][label] += excess[rows].T @ features[rows]
    return sums


class CReFF(FedAvg):
    """FedAvg with a head that is trained on federated features.

    Args:
        samples: Federated features of each class, >= 1.
        match_steps: Steps of the features' gradient descent in a due round, >= 1.
        match_lr: Its learning rate, > 0.
        steps: Mini-batches of the head's training, >= 1.
        lr: Its learning rate, > 0; SGD with momentum 0.9.
        batch_size: Features a mini-batch, >= 1.
        every: Gradients are queried after each round that is a multiple of it, and after the last one, >= 1.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        samples: int = 100,
        match_steps: int = 100,
        match_lr: float = 0.1,
        steps: int = 300,
        lr: float = 0.01,
        batch_size: int = 256,
        every: int = 1,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(
            at_least=1,
            samples=samples,
            match_steps=match_steps,
            steps=steps,
            batch_size=batch_size,
            every=every,
        )
        check_range(above=0, match_lr=match_lr, lr=lr)
        self.samples, self.match_steps, self.match_lr = samples, match_steps, match_lr
        self.steps, self.lr, self.batch_size, self.every = steps, lr, batch_size, every
        self.features: State = {}
        """``features`` [C, samples, D] and ``seen`` bool [C], classes that a client had; empty at first."""
        self.head: State = {}
        """``weight`` [C, D] and ``bias`` [C] of the last trained head; empty at first."""

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Refuse a run that may end with another round's model, which has no trained head.

        Raises:
            ConfigError: ``evaluation.patience`` or ``evaluation.keep = "best"`` is set.
        """
        check_last_round(config, _NEEDED_BY)

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        """Query the gradients at the head that was trained last; the first time at the model's own."""
        due = round == rounds or round % self.every == 0
        return Query(use="head-gradients", tensors=self.head) if due and not answers else None

    def refine(self, state: State, server: ServerContext) -> State:
        """Learn features and a head; return the model with this head after the last round, else as it is.

        Raises:
            RunError: The head stays on the clients.
            ConfigError: The network has no backbone and linear head with a row for each class.
        """
        last = server.round == server.rounds
        if not server.answers or not server.answers[0]["count"].any():
            return self._with_head(state) if last and self.head else state
        sums = {name: torch.from_numpy(array) for name, array in server.answers[0].items()}
        _linear_head(halves(server.make_model(state), _NEEDED_BY), len(sums["count"]))
        if missing := [name for name in ("head.weight", "head.bias") if _is_absent(name, state, server)]:
            raise RunError(
                f"{_NEEDED_BY} trains the head on the server, and {missing[0]!r} stays on the clients; share "
                "it in [model]"
            )
        here = sums["count"] > 0
        if not self.features:
            shape = (len(here), self.samples, sums["weight"].shape[2])
            first = torch.randn(shape, generator=server.generator)
            self.features = {"features": first, "seen": torch.zeros_like(here)}
        at = self.head or {
            name: state[f"head.{name}"].float() for name in ("weight", "bias") if f"head.{name}" in state
        }
        self.features["seen"] |= here
        distance = self._match(here, sums, at)
        self.head = self._train_head(server.generator, bias="head.bias" in state)
        server.facts["creff"] = {"distance": distance, "classes": int(here.sum())}
        return self._with_head(state) if last else state

    def _match(self, here: torch.Tensor, sums: State, at: State) -> float:
        """Learn the features of the classes that are here; return their mean distance before, 0 to 2."""
        labels = torch.nonzero(here).flatten()
        counts = sums["count"][labels].double()
        weight = (sums["weight"][labels] / counts[:, None, None]).float()
        bias = (sums["bias"][labels] / counts[:, None]).float() if "bias" in at else None
        features = self.features["features"][labels].requires_grad_(True)
        before = float("nan")
        for step in range(self.match_steps):
            drawn = class_gradients(features, labels, at["weight"], at.get("bias"))
            distances = gradient_distance(drawn, (weight, bias))
            if step == 0:
                before = float(distances.mean().detach()) / (len(at["weight"]) + (bias is not None))
            (gradient,) = torch.autograd.grad(distances.sum(), features)
            features.data.sub_(gradient, alpha=self.match_lr)
        self.features["features"][labels] = features.detach()
        return before

    def _train_head(self, generator: torch.Generator, *, bias: bool) -> State:
        """Return a linear head that is trained on the federated features of the classes seen so far."""
        known, seen = self.features["features"], self.features["seen"]
        labels = torch.nonzero(seen).flatten().repeat_interleave(self.samples)
        features = known[seen].flatten(0, 1)
        head = {"weight": torch.zeros(len(known), known.shape[2])}
        if bias:
            head["bias"] = torch.zeros(len(known))
        parameters = [tensor.requires_grad_(True) for tensor in head.values()]
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=0.9)
        for _ in range(self.steps):
            picked = torch.randint(len(labels), (self.batch_size,), generator=generator)
            optimizer.zero_grad()
            logits = F.linear(features[picked], head["weight"], head.get("bias"))
            F.cross_entropy(logits, labels[picked]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return {name: tensor.detach() for name, tensor in head.items()}

    def _with_head(self, state: State) -> State:
        new = {f"head.{name}": tensor for name, tensor in self.head.items()}
        return state | {name: tensor.to(state[name].dtype) for name, tensor in new.items()}


def class_gradients(
    features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean cross-entropy's gradients by W [K, C, D] and by b [K, C] of features of K classes.

    Args:
        features: [K, M, D].
        labels: Class of each of the K groups [K].
        weight: W [C, D].
        bias: b [C], or None.
    """
    target = F.one_hot(labels, len(weight)).to(features.dtype)[:, None, :]
    excess = F.linear(features, weight, bias).softmax(dim=2) - target
    return excess.transpose(1, 2) @ features / features.shape[1], excess.mean(dim=1)


def gradient_distance(
    drawn: tuple[torch.Tensor, torch.Tensor], real: tuple[torch.Tensor, torch.Tensor | None]
) -> torch.Tensor:
    """Return, for each of K classes [K], the sum of 1 - cos over the rows of dW and of db as one row more.

    A row that is zero is at a distance of 1 and has no gradient.
    """
    rows = _one_minus_cosine(drawn[0], real[0]).sum(dim=1)
    return rows if real[1] is None else rows + _one_minus_cosine(drawn[1], real[1])


def _one_minus_cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # The norm's gradient at 0 is 0 in torch, so a row of zeros gives no NaN.
    similar: torch.Tensor = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + _EPSILON)
    return 1 - similar


def _linear_head(network: ImageModel, classes: int) -> nn.Linear:
    head: Any = network.head
    if not isinstance(head, nn.Linear) or head.out_features != classes:
        raise ConfigError(
            f"{_NEEDED_BY} trains a linear head with a row for each class, and this network's is a "
            f"{type(head).__name__}; use a network with such a head, or another strategy"
        )
    if classes * classes * head.in_features > _MOST:
        raise ConfigError(
            f"{_NEEDED_BY}: the gradients of {classes} classes by a head with {head.in_features} features "
            f"are more than {_MOST:,} numbers; use a network with fewer features"
        )
    return head


def _is_absent(name: str, state: State, server: ServerContext) -> bool:
    return name not in state and name in dict(server.make_model(state).named_parameters())
