"""One method for long tails over unlike clients, of parts that papers have apart.

The package's own combination, for ``[loss] use = "logit-adjusted"`` with ``prior = "global"``, which corrects
each client's training for the federation's class frequencies (Menon et al. 2021, arXiv 2007.07314). It adds:

- Server momentum (``fedavgm``; Hsu, Qi, Brown 2019, arXiv 1909.06335). A cohort has other classes than the
  one before it, and often no image of the rare ones; the direction of several rounds has seen them all.
- A balanced head in closed form (``closed-form``), after the last round, of one message of exact sums from
  each client. It is the same however the images are divided over clients, where the trained head of a class
  suffers if two clients have all its images. The final head averages both, by ``share``::

      W <- (1 - share) W + share sqrt(v(W) / v(V)) V

  W the trained head and V the discriminants, both on standardised features, v the variance of a head's
  logits about their mean over the classes, over images of which each class weighs alike.

With ``momentum`` and ``share`` 0 it is FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedvision.algorithms.base import Answer, ServerContext
from fedvision.algorithms.closed_form.heads import FeatureSums
from fedvision.algorithms.closed_form.strategy import ClosedForm
from fedvision.algorithms.last_round import check_last_round
from fedvision.algorithms.server_optimizers import FedAvgM
from fedvision.errors import ConfigError
from fedvision.models.base import halves
from fedvision.models.standardised import STEPS
from fedvision.ranges import check_range
from fedvision.types import Query, State

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_NEEDED_BY = "[strategy] use = 'longtail'"
_SHRINKAGE = 0.03


class LongTail(FedAvgM):
    """Server momentum, and a head that averages the trained and a balanced one.

    Args:
        momentum: The server's, 0 <= momentum < 1.
        share: Share of the closed form in the last round's head, 0 <= share <= 1; with 0 nothing is queried.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        momentum: float = 0.5,
        share: float = 0.5,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(momentum=momentum, fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, at_most=1, share=share)
        self.share = share
        self.closed_form = ClosedForm(head="lda", shrinkage=_SHRINKAGE)

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Refuse a run that may end with another round's model, which has no such head.

        Raises:
            ConfigError: ``evaluation.patience`` or ``evaluation.keep = "best"`` is set.
        """
        if self.share:
            check_last_round(config, _NEEDED_BY, "set strategy.share = 0")

    def notices(self, config: ExperimentConfig) -> Sequence[str]:
        """Say which loss the method is made for, where the experiment's corrects nothing."""
        if config.loss.use != "cross-entropy" or config.training.sampler.use != "shuffle":
            return ()
        return (
            f"{_NEEDED_BY} is made for a loss that corrects for class frequencies, and [loss] is plain "
            'cross-entropy; take loss = { use = "logit-adjusted", prior = "global" }',
        )

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        """Query the sums of the closed form after the last round."""
        if round < rounds or not self.share:
            return None
        return self.closed_form.query(round, rounds, answers)

    def refine(self, state: State, server: ServerContext) -> State:
        """Return the model with the averaged head; as it was where nobody answered both queries.

        Raises:
            ConfigError: The head is not linear with a bias, or its features are expanded.
            RunError: The head stays on the clients.
        """
        if len(server.answers) < 2:
            return state
        head = halves(server.make_model(state), _NEEDED_BY).head
        if type(head) is not nn.Linear:
            raise ConfigError(
                f"{_NEEDED_BY} averages a linear head with a closed form, and this network's is a "
                f"{type(head).__name__}; set strategy.share = 0, or use another network"
            )
        solved = self.closed_form.refine(state, server)
        names = ("head.weight", "head.bias")
        trained, balanced = ([one[name].double() for name in names] for one in (state, solved))
        sums, constants = self.closed_form.feature_sums(), self.closed_form.constants
        own, other = (energy(weight, bias, sums, constants) for weight, bias in (trained, balanced))
        if other == 0:
            return state
        scale = (own / other) ** 0.5 if own else 1.0
        server.facts["scale"] = scale
        averaged = [
            (1 - self.share) * old + self.share * scale * new
            for old, new in zip(trained, balanced, strict=True)
        ]
        return state | {
            name: tensor.to(state[name].dtype) for name, tensor in zip(names, averaged, strict=True)
        }


def energy(
    weight: torch.Tensor, bias: torch.Tensor, sums: FeatureSums, constants: Mapping[str, torch.Tensor]
) -> float:
    """Return the mean square of a head's logits about their mean over the classes, over weighted images.

    Args:
        weight: [C, D], float64, on features as they are.
        bias: [C], float64.
        sums: Of the standardised features; their weights balance the classes.
        constants: ``mean`` and ``deviation`` of the features [D].
    """
    rows = weight * constants["deviation"]
    shift = bias + weight @ constants["mean"]
    rows, shift = rows - rows.mean(0), shift - shift.mean()
    weights = torch.from_numpy(sums.weight).double()
    total = float(weights @ torch.from_numpy(sums.count).double())
    first = weights @ torch.from_numpy(sums.sum).double() / STEPS / total
    second = sums.products() / total
    squares = (rows @ second * rows).sum() + 2 * (rows @ first) @ shift + shift @ shift
    return max(0.0, float(squares) / len(bias))
