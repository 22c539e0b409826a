"""FedReLa: FedAvg whose clients give some images of their frequent classes a rarer label, once.

Hu, Menéndez, Liu, Gong, Wang, Peng 2026, "FedReLa: Imbalanced Federated Learning via Re-Labeling", ICML 2026,
arXiv 2606.26037; authors' code: github.com/guangzhengh/FedReLa, from which the formulas here are read. The
first time that a client trains after round ``warmup``, it lets the global model predict each of its images i
with label y. Of the probabilities p_ic::

    z_ic = (p_ic - mean_{j: y_j = y} p_jc) / std_{j: y_j = y} p_jc
    r_c  = 1 - (n_kc - min n_k) / (max n_k - min n_k)            1 for all where the counts are equal
    f_ic = tanh(z_ic - t_c) max(r_c - r_y, 0)                    t_c: a share of the images have a larger z_ic

and it gets the label c with the largest f_ic among those for which f_ic exceeds a number drawn from U(0, 1),
if there is one. So images of frequent classes that look most like a rarer one move the boundary. The client
keeps the new labels and trains on them from then on. The server knows nothing of it.

Differences. The code takes the mean prediction of five augmented passes, here an image is predicted once, as
it is. r is of the client's own counts, as in the code, so a class that the client lacks counts as its rarest;
where the federation's counts are known (``loss.prior = "global"`` or ``"mixed"``) no image gets a label of a
class that nobody has, else it can. Losses that take class counts get those of the original labels, and what
clients keep out of training is measured with the original labels.

``share = 0`` is FedAvg, to the bit. Costs: one forward pass over a client's images in one round, and 8 bytes
for each of them on the client's disk. New labels are wrong labels for what they are: measure the frequent
classes as well. Clients are trained one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ClientError, ConfigError
from fedvision.inputs import Batch
from fedvision.losses.logits import precise
from fedvision.ranges import check_range
from fedvision.tasks.base import build_task
from fedvision.training.client_algorithm import ClientAlgorithm, numbers_sent
from fedvision.types import ClientConfig, State, TrainRequest

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_LABELS = "labels"
_LEAST = 1e-6
"""Standard deviation below which predictions of a class count as equal, as in the authors' code."""


class FedReLaClient(ClientAlgorithm):
    """The task's loss on labels that the client has changed once and keeps."""

    draws = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Take note of numbers and of the labels that the client kept.

        Raises:
            ClientError: The request has no number ``share`` or ``warmup``, or no counts.
        """
        numbers = numbers_sent(request, "FedReLa", "share", "warmup")
        if request.own_counts is None:
            why = "FedReLa got no class counts of the client's images"
            raise ClientError(request.client, "training", why)
        self._share, self._due = numbers["share"], request.round > numbers["warmup"]
        self._counts = torch.tensor(request.own_counts)
        self._known = None if request.counts is None else torch.tensor(request.counts)
        self._memory = memory

    def survey(self, model: nn.Module, batches: Iterable[tuple[Batch, torch.Tensor]]) -> None:
        """Take up the labels kept, or make new ones where it is time; before, nothing is looked at."""
        if not (self._due and self._share):
            return
        kept = self._memory.get(_LABELS)
        # A client whose images have changed begins anew.
        if kept is None or len(kept) != int(self._counts.sum()):
            rows = [(precise(model(x)).softmax(dim=1).cpu().double(), own.cpu()) for x, own in batches]
            predicted, labels = (torch.cat(column) for column in zip(*rows, strict=True))
            kept = reallocate(predicted, labels, self._counts, self._known, self._share, self.generator)
            self._memory = {_LABELS: kept}
        self.labels = kept

    def finish(self, steps: int, lr: float) -> tuple[dict[str, State], State]:
        """Send nothing; keep the labels."""
        return {}, dict(self._memory)


class FedReLa(FedAvg):
    """FedAvg whose clients give images of frequent classes a rarer label, once.

    Args:
        share: Share of a client's images that may get the label of a class, for each class at most,
            0 <= share < 1; 0 is FedAvg.
        warmup: Rounds before labels are changed, >= 0; the authors' examples have 80 or 90 % of all.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = FedReLaClient

    def __init__(
        self, *, share: float = 0.05, warmup: int = 20, fraction: float = 1.0, min_clients: int = 1
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, below=1, share=share)
        check_range(at_least=0, warmup=warmup)
        self.share, self.warmup = share, warmup

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Refuse labels that cannot be exchanged, and a warm-up that never ends.

        Raises:
            ConfigError: Images have not one class each, or no round comes after ``warmup``.
        """
        if not build_task(config.task).one_class:
            raise ConfigError(
                "[strategy] use = 'fedrela' exchanges the label of an image, and the task has not one each; "
                "use another strategy"
            )
        if self.share and self.warmup >= config.rounds:
            raise ConfigError(
                f"strategy.warmup = {self.warmup} leaves no round of {config.rounds} in which labels are "
                "changed; make it smaller, or set strategy.share = 0"
            )

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send share and warm-up."""
        return ClientConfig(numbers={"share": self.share, "warmup": float(self.warmup)})


def reallocate(
    predicted: torch.Tensor,
    labels: torch.Tensor,
    counts: torch.Tensor,
    known: torch.Tensor | None,
    share: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return new labels int64 [N].

    Args:
        predicted: Probabilities p float64 [N, C].
        labels: The client's int64 [N].
        counts: Its images of each class [C].
        known: The federation's [C], or None; a class of which it has none is no new label.
        share: Of the images that may get a class as their label.
        generator: Source of the draws.
    """
    rates = rates_of(standardised(predicted, labels), labels, counts, share)
    if known is not None:
        rates[:, known == 0] = 0.0
    drawn = torch.rand(rates.shape, generator=generator, dtype=torch.float64)
    chosen = torch.where(rates > drawn, rates, -1.0)
    best, label = chosen.max(dim=1)
    return torch.where(best > 0, label, labels)


def standardised(predicted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return z [N, C]: predictions less the mean of those of the same label, over their deviation."""
    found = torch.zeros_like(predicted)
    for label in torch.unique(labels).tolist():
        own = labels == label
        rows = predicted[own]
        found[own] = (rows - rows.mean(dim=0)) / rows.std(dim=0, correction=0).clamp(min=_LEAST)
    return found


def rates_of(z: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor, share: float) -> torch.Tensor:
    """Return f [N, C], with which an image gets each label; at most 1, and <= 0 where it cannot get it."""
    place = len(z) - 1 - min(int(share * len(z)), len(z) - 1)
    threshold = z.sort(dim=0).values[place]
    wide = counts.double()
    span = wide.max() - wide.min()
    rarity = 1 - (wide - wide.min()) / span if span > 0 else torch.ones_like(wide)
    return torch.tanh(z - threshold) * (rarity - rarity[labels][:, None]).clamp(min=0)
