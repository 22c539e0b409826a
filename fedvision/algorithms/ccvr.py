"""CCVR: FedAvg, and then a head that the server trains on features drawn from each class's distribution.

Luo, Chen, Hu, Zhang, Liang, Feng 2021, "No Fear of Heterogeneity: Classifier Calibration for Federated
Learning with Non-IID Data", arXiv 2106.05001. The head suffers most from unlike clients, so it is trained
anew once the backbone is done: clients send the moments of their features (``feature_moments``), the server
takes the features of class c as normal with the mean and covariance of all clients' images, draws ``samples``
of them for every class and trains the head on these with cross-entropy.

The paper's clients send means and covariances of their own, from which the server computes the pooled ones
(its equations 5 and 6). Here they send sums, of which only the total is needed for the same numbers::

    mu_c = sum z / n_c        Sigma_c = (sum z z^T - n_c mu_c mu_c^T) / (n_c - 1)

so the moments can be masked. A class of one image has no covariance, and its features are all the mean. A
class that no client has is not drawn.

The message has C D (D + 1) numbers for D features: as much as a large model where D is 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.algorithms.base import Answer, ServerContext
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.last_round import check_last_round
from fedvision.errors import ConfigError, RunError
from fedvision.models.base import halves
from fedvision.ranges import check_range
from fedvision.training.statistics import LocalData
from fedvision.types import Query, State

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_NEEDED_BY = "[strategy] use = 'ccvr'"
_MOST = 1 << 25
"""Numbers of the moments, 256 MiB."""


def feature_moments(*, model: nn.Module, data: LocalData) -> dict[str, torch.Tensor]:
    """Moments of the backbone's features by class: ``count`` [C], ``sum`` [C, D], ``outer`` [C, D, D].

    Raises:
        ConfigError: The network has no backbone and head, its features are not [B, D], or D is too large.
    """
    halves(model, _NEEDED_BY)
    moments = dict[str, torch.Tensor]()
    for narrow, labels in data.features():
        if labels.dim() != 1:
            raise ConfigError(f"{_NEEDED_BY} needs one label an image; use another strategy for this task")
        features, own = narrow.double(), labels.long()
        if data.num_classes * features.shape[1] ** 2 > _MOST:
            raise ConfigError(
                f"{_NEEDED_BY}: the features of an image are {features.shape[1]} numbers, whose covariances "
                f"for {data.num_classes} classes are more than {_MOST:,} numbers; use a network with fewer "
                "features"
            )
        if not moments:
            moments = _zeros(data.num_classes, features.shape[1])
        moments["count"] += torch.bincount(own, minlength=data.num_classes)
        moments["sum"].index_add_(0, own, features)
        for label in torch.nonzero(torch.bincount(own)).flatten().tolist():
            rows = features[own == label]
            moments["outer"][label] += rows.T @ rows
    return moments


class CCVR(FedAvg):
    """FedAvg with a head that is calibrated on virtual features.

    Args:
        samples: Features drawn of each class, >= 1.
        steps: Mini-batches of the head's training, >= 1.
        lr: Its learning rate, > 0; SGD with momentum 0.9.
        batch_size: Features a mini-batch, >= 1.
        every: Also calibrates after each round that is a multiple of it; 0 after the last round alone.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        samples: int = 200,
        steps: int = 500,
        lr: float = 0.01,
        batch_size: int = 64,
        every: int = 0,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=1, samples=samples, steps=steps, batch_size=batch_size)
        check_range(above=0, lr=lr)
        check_range(at_least=0, every=every)
        self.samples, self.steps, self.lr, self.batch_size = samples, steps, lr, batch_size
        self.every = every

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Refuse a run that may end with another round's model, which has no such head.

        Raises:
            ConfigError: ``evaluation.patience`` or ``evaluation.keep = "best"`` is set.
        """
        if self.every != 1:
            check_last_round(config, _NEEDED_BY, "set strategy.every = 1")

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        """Query the moments of the features after the last round, and each ``every`` rounds."""
        due = round == rounds or (self.every > 0 and round % self.every == 0)
        return Query(use="feature-moments") if due and not answers else None

    def refine(self, state: State, server: ServerContext) -> State:
        """Return the model with a head trained on virtual features; as it was where no moments came.

        Raises:
            RunError: The head stays on the clients.
            ConfigError: The network has no backbone and head.
        """
        if not server.answers:
            return state
        network = halves(server.make_model(state), _NEEDED_BY)
        names = [f"head.{name}" for name, _ in network.head.named_parameters()]
        if missing := [name for name in names if name not in state]:
            raise RunError(
                f"{_NEEDED_BY} trains the head on the server, and {missing[0]!r} stays on the clients; share "
                "it in [model]"
            )
        moments = {name: torch.from_numpy(array) for name, array in server.answers[0].items()}
        features, labels = draw_features(moments, self.samples, server.generator)
        head = network.head.train().requires_grad_(True)
        optimizer = torch.optim.SGD(head.parameters(), lr=self.lr, momentum=0.9)
        for _ in range(self.steps):
            picked = torch.randint(len(labels), (self.batch_size,), generator=server.generator)
            optimizer.zero_grad()
            F.cross_entropy(head(features[picked]), labels[picked]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        trained = dict(network.head.named_parameters())
        return state | {
            f"head.{name}": p.detach().to(state[f"head.{name}"].dtype) for name, p in trained.items()
        }


def draw_features(
    moments: State, samples: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw features [N, D] of each class that has images, and their labels [N].

    Args:
        moments: float64 ``count`` [C], ``sum`` [C, D] and ``outer`` [C, D, D].
        samples: Features of each class.
        generator: Source of the draws.

    Returns:
        float32 features and int64 labels, class by class.
    """
    features, labels = [], []
    for label in torch.nonzero(moments["count"] > 0).flatten().tolist():
        mean, covariance = gaussian(moments, label)
        # A covariance has no negative eigenvalue but by rounding; its root serves where it is singular, too.
        # The symmetric root is unique: eigenvectors have any sign, and of equal eigenvalues any basis, by
        # which a last bit of the moments, as it differs between engines, would change all features.
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        noise = torch.randn(samples, len(mean), generator=generator, dtype=torch.float64)
        features.append(mean + noise @ root)
        labels.append(torch.full((samples,), label))
    return torch.cat(features).float(), torch.cat(labels)


def gaussian(moments: State, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a class's mean [D] and covariance [D, D] with n - 1 in the denominator, 0 for one image."""
    count = float(moments["count"][label])
    mean = moments["sum"][label] / count
    if count < 2:
        return mean, torch.zeros(len(mean), len(mean), dtype=torch.float64)
    covariance = (moments["outer"][label] - count * torch.outer(mean, mean)) / (count - 1)
    return mean, (covariance + covariance.T) / 2


def _zeros(classes: int, features: int) -> State:
    return {
        "count": torch.zeros(classes, dtype=torch.int64),
        "sum": torch.zeros(classes, features, dtype=torch.float64),
        "outer": torch.zeros(classes, features, features, dtype=torch.float64),
    }
