"""RUCR: FedAvg whose clients share class prototypes, and a head that they train on mixtures with these.

"Federated Learning with Long-Tailed Data via Representation Unification and Classifier Rectification";
authors' code: github.com/liuyuxia211/RUCR, from which the formulas here are read. Two parts:

*Representation unification.* With u_c the mean feature of class c over the clients, pi_c the class's share
of their images, and s_c = cos(f, u_c) / tau for the features f of an image of class y, each client minimises
its loss plus::

    weight * CE(s + e_y log pi_y, y)

so that features of rare classes are drawn to their prototypes more strongly. As in the code s_c is 0 for a
class that the client lacks.

*Classifier rectification.* After the last round each client trains the head, beginning with the global one,
for ``steps`` steps on ``samples`` mixtures of each class c, and the server averages the heads by images::

    lambda v_c + (1 - lambda) f / ||f||        lambda ~ U(low, high), f the features of one of its own images

with v_c = sum_k n_kc m_kc / ||m_kc|| / n_c, m_kc client k's mean feature of class c.

Differences. Prototypes are those of all clients that answer, at the model after a round's training, and not
of the round's cohort at the same model before the next training; the first round has none. They are sums, so
they can be masked. The code rectifies in each of the last 20 rounds and keeps the best of these heads by its
test images; here the last round's model alone gets such a head, which begins with the global one in place of
the client's own. Its learning rate is 1, where the code has 0.01: one training of 200 steps hardly moves the
head at that, and mixtures are no longer than 1, so the step is stable. Images for mixtures are drawn with
replacement. A class that nobody has is in neither part, and an image of a class without a prototype has no
contrast.

Costs: each round one forward pass of every client over its images, 2 C D + C numbers from each and C D to
each of the cohort; after the last round one pass more, ``steps`` steps of a head, and C (D + 1) numbers. A
head that a client trains on its features tells of them what an update of the head does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from fedvision import seeding
from fedvision.algorithms.base import Answer, ServerContext
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.last_round import check_last_round
from fedvision.devices import widest_float
from fedvision.errors import ClientError, ConfigError, RunError
from fedvision.inputs import Batch
from fedvision.models.base import ImageModel, halves
from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm, numbers_sent
from fedvision.training.statistics import LocalData
from fedvision.types import ClientConfig, LossFn, Query, State, TrainRequest

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_NEEDED_BY = "[strategy] use = 'rucr'"
_GROUP = "prototypes"


def class_prototypes(*, model: nn.Module, data: LocalData) -> dict[str, torch.Tensor]:
    """Sums by class: ``count`` [C], ``sum`` [C, D] of features, and ``unit`` [C, D], n_kc m_kc / ||m_kc||.

    Raises:
        ConfigError: The network has no backbone and head, or the images have several labels.
    """
    features, labels = _features(model, data)
    sums = torch.zeros(data.num_classes, features.shape[1], dtype=torch.float64)
    sums.index_add_(0, labels, features.double())
    count = torch.bincount(labels, minlength=data.num_classes)
    return {"count": count, "sum": sums, "unit": F.normalize(sums, dim=1) * count[:, None]}


def rectified_head(
    *,
    model: nn.Module,
    data: LocalData,
    tensors: State,
    samples: int = 100,
    steps: int = 200,
    lr: float = 1.0,
    batch_size: int = 256,
    low: float = 0.35,
    high: float = 0.95,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Return a head that is trained on mixtures, times the client's images, and the number of these.

    Args:
        model: The network.
        data: The client's images.
        tensors: ``unit`` [C, D], the v_c, and ``count`` [C], 0 for classes without a prototype.
        samples: Mixtures of each class.
        steps: Mini-batches.
        lr: Learning rate of SGD.
        batch_size: Mixtures a mini-batch.
        low: Smallest part of the prototype.
        high: Largest part.
        seed: Of what is drawn.

    Raises:
        ConfigError: The network has no backbone and linear head, or the images have several labels.
        ValueError: An argument is out of range.
    """
    check_range(at_least=1, steps=steps)
    check_range(at_least=0, seed=seed)
    _check_mixtures(samples=samples, lr=lr, batch_size=batch_size, low=low, high=high)
    features, _ = _features(model, data)
    source = torch.Generator().manual_seed(seed)
    mixtures, labels = mix(features, tensors, samples, (low, high), source)
    head = halves(model, _NEEDED_BY).head
    # A copy that can be trained, where no gradients are taken.
    trained = {name: p.detach().cpu().float().clone() for name, p in head.named_parameters()}
    with torch.enable_grad():
        parameters = [tensor.requires_grad_(True) for tensor in trained.values()]
        optimizer = torch.optim.SGD(parameters, lr=lr)
        for _ in range(steps):
            picked = torch.randint(len(labels), (batch_size,), generator=source)
            logits = F.linear(mixtures[picked], trained["weight"], trained.get("bias"))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[picked]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    images = len(data)
    heads = {name: tensor.detach().double() * images for name, tensor in trained.items()}
    return {"images": torch.tensor(images), **heads}


class RUCRClient(ClientAlgorithm):
    """The task's loss and the contrast with the classes' prototypes."""

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take up the prototypes; in the first round there are none.

        Raises:
            ClientError: The request has no number ``weight`` or ``tau``, or no counts.
            ConfigError: The network has no backbone and head.
        """
        numbers = numbers_sent(request, "RUCR", "weight", "tau")
        if request.own_counts is None:
            raise ClientError(request.client, "training", "RUCR got no class counts of the client's images")
        halves(model, _NEEDED_BY)
        self._weight, self._tau = numbers["weight"], numbers["tau"]
        sent = request.client_config.tensors.get(_GROUP, {})
        self._prototypes: torch.Tensor | None = None
        if sent and self._weight:
            device = next(model.parameters()).device
            # Precision first: not every device has float64.
            self._counts = sent["count"].to(widest_float(device)).to(device)
            self._prototypes = sent["mean"].to(device)
            self._here = torch.tensor(request.own_counts, device=device) > 0

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return the task's loss plus ``weight`` times the contrast of each image [B]."""
        network = halves(model, _NEEDED_BY)
        features = network.backbone(x)
        losses = task_loss(network.head(features), labels)
        if self._prototypes is None:
            return losses
        contrast = prototype_contrast(features, labels, self._prototypes, self._counts, self._here, self._tau)
        return losses + self._weight * contrast


class RUCR(FedAvg):
    """FedAvg with prototypes that unify features, and a head that is rectified after the last round.

    Args:
        weight: Of the contrast with the prototypes, >= 0; 0 leaves it out.
        tau: Temperature of the similarities, > 0.
        samples: Mixtures of each class for the head, >= 1.
        steps: Mini-batches of the head's training, >= 0; 0 leaves the head as it is.
        lr: Its learning rate, > 0; plain SGD.
        batch_size: Mixtures a mini-batch, >= 1.
        low: Smallest part that the prototype has in a mixture, 0 to 1.
        high: Largest part, ``low`` to 1.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = RUCRClient

    def __init__(
        self,
        *,
        weight: float = 0.15,
        tau: float = 0.9,
        samples: int = 100,
        steps: int = 200,
        lr: float = 1.0,
        batch_size: int = 256,
        low: float = 0.35,
        high: float = 0.95,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, weight=weight, steps=steps)
        check_range(above=0, tau=tau)
        _check_mixtures(samples=samples, lr=lr, batch_size=batch_size, low=low, high=high)
        self.weight, self.tau, self.samples, self.steps = weight, tau, samples, steps
        self.lr, self.batch_size, self.low, self.high = lr, batch_size, low, high
        self.prototypes: State = {}
        """``mean`` float32 [C, D] and ``count`` float64 [C]; empty until the first round has ended."""
        self._seed = 0

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Take note of the seed; refuse a run that may end with another round's model.

        Raises:
            ConfigError: The head is to be rectified, and ``evaluation.patience`` or ``keep = "best"`` is set.
        """
        self._seed = config.seed
        if self.steps:
            check_last_round(config, _NEEDED_BY, "set strategy.steps = 0")

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send weight, tau and the prototypes."""
        beside = {_GROUP: self.prototypes} if self.prototypes and self.weight else {}
        return ClientConfig(numbers={"weight": self.weight, "tau": self.tau}, tensors=beside)

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        """Query the prototypes after each round that needs them, and heads after the last one."""
        last = round == rounds
        if not answers:
            needed = self.steps if last else self.weight
            return Query(use="class-prototypes") if needed else None
        if not (last and self.steps and len(answers) == 1 and answers[0]["count"].any()):
            return None
        count = torch.from_numpy(answers[0]["count"]).double()
        unit = torch.from_numpy(answers[0]["unit"]) / count.clamp(min=1)[:, None]
        args = {
            "samples": self.samples,
            "steps": self.steps,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "low": self.low,
            "high": self.high,
            "seed": seeding.derive(self._seed, "rucr", round),
        }
        return Query(use="rectified-head", args=args, tensors={"unit": unit.float(), "count": count})

    def refine(self, state: State, server: ServerContext) -> State:
        """Keep the prototypes; return the model with the mean of the heads where such came.

        Raises:
            RunError: The head stays on the clients.
            ConfigError: The network has no backbone and linear head.
        """
        if not server.answers:
            return state
        count = torch.from_numpy(server.answers[0]["count"]).double()
        mean = torch.from_numpy(server.answers[0]["sum"]) / count.clamp(min=1)[:, None]
        self.prototypes = {"mean": mean.float(), "count": count}
        if len(server.answers) < 2:
            return state
        heads = {name: torch.as_tensor(total) for name, total in server.answers[1].items()}
        images = float(heads.pop("images"))
        if missing := [f"head.{name}" for name in heads if f"head.{name}" not in state]:
            raise RunError(
                f"{_NEEDED_BY} averages the head, and {missing[0]!r} stays on the clients; share it in "
                "[model], or set strategy.steps = 0"
            )
        new = {f"head.{name}": total / max(images, 1.0) for name, total in heads.items()}
        return state | {name: tensor.to(state[name].dtype) for name, tensor in new.items()}


def prototype_contrast(
    features: torch.Tensor,
    labels: torch.Tensor,
    prototypes: torch.Tensor,
    counts: torch.Tensor,
    here: torch.Tensor,
    tau: float,
) -> torch.Tensor:
    """Return CE(s + e_y log pi_y, y) of each image [B], in nats; 0 for a class without a prototype.

    Args:
        features: [B, D].
        labels: int64 [B].
        prototypes: u_c [C, D].
        counts: Images of each class over the federation [C], 0 where there is no prototype.
        here: bool [C]: classes that the client has; s_c is 0 for others.
        tau: Temperature, > 0.
    """
    # float32 whatever the forward pass computed in.
    own = F.normalize(features.flatten(1).float(), dim=1)
    similar = own @ F.normalize(prototypes.float(), dim=1).T / tau
    similar = torch.where(here, similar, 0.0)
    known = counts > 0
    share = (counts.clamp(min=1) / counts.sum().clamp(min=1)).log().float()
    margin = F.one_hot(labels, len(counts)) * torch.where(known, share, 0.0)
    logits = (similar + margin).masked_fill(~known, float("-inf"))
    # Rows of such a class would be infinite; they are computed as of a known one and left out.
    first = int(known.nonzero()[0]) if bool(known.any()) else 0
    found = F.cross_entropy(
        logits if bool(known.any()) else similar, torch.where(known[labels], labels, first), reduction="none"
    )
    return torch.where(known[labels], found, 0.0)


def mix(
    features: torch.Tensor,
    prototypes: State,
    samples: int,
    part: tuple[float, float],
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mixtures float32 [M, D] of each class that has a prototype, and their labels [M].

    Args:
        features: The client's [N, D].
        prototypes: ``unit`` [C, D] and ``count`` [C].
        samples: Mixtures of each class.
        part: Smallest and largest part of the prototype.
        generator: Source of the draws.
    """
    labels = torch.nonzero(prototypes["count"] > 0).flatten().repeat_interleave(samples)
    weight = part[0] + (part[1] - part[0]) * torch.rand((len(labels), 1), generator=generator)
    picked = torch.randint(len(features), (len(labels),), generator=generator)
    own = F.normalize(features[picked].float(), dim=1)
    return weight * prototypes["unit"].float()[labels] + (1 - weight) * own, labels


def _features(model: nn.Module, data: LocalData) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all of a client's features float32 [N, D] and labels int64 [N]."""
    _linear(halves(model, _NEEDED_BY), data.num_classes)
    rows = [(features.float(), labels) for features, labels in data.features()]
    if any(labels.dim() != 1 for _, labels in rows):
        raise ConfigError(f"{_NEEDED_BY} needs one label an image; use another strategy for this task")
    return torch.cat([features for features, _ in rows]), torch.cat([labels for _, labels in rows]).long()


def _linear(network: ImageModel, classes: int) -> None:
    head = network.head
    if not isinstance(head, nn.Linear) or head.out_features != classes:
        raise ConfigError(
            f"{_NEEDED_BY} trains a linear head with a row for each class, and this network's is a "
            f"{type(head).__name__}; use a network with such a head, or another strategy"
        )


def _check_mixtures(*, samples: int, lr: float, batch_size: int, low: float, high: float) -> None:
    check_range(at_least=1, samples=samples, batch_size=batch_size)
    check_range(above=0, lr=lr)
    check_range(at_least=0, at_most=1, low=low, high=high)
    if low > high:
        raise ValueError(f"low must be <= high = {high:g}, not {low:g}")
