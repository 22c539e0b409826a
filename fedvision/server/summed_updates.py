"""Updates of which the server can read only the sum over a round's clients, as under pairwise masks.

What clients send are whole numbers, changes times training images, that are added modulo 2^64. Their sum over
all clients that were asked, decoded and divided by all images, is the mean change; the strategy gets the mean
model as one update with all images. To a strategy that needs no more of a round than the mean model, weighted
by images, that is the same; ``check_strategy_of_sums`` tries before a run whether it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from flwr.serverapp.strategy import Strategy

from fedvision.algorithms.mean import MODEL, MeanStrategy, summable
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, InvalidUpdate, TooFewUpdates
from fedvision.flower.strategy import FlowerStrategy
from fedvision.flower.train_reply import TrainReply, mean_loss
from fedvision.server.update_validator import UpdateValidator
from fedvision.types import ClientUpdate, State

_NOBODY = -1
"""The client of a sum."""


def sum_replies(
    replies: Iterable[TrainReply], validator: UpdateValidator, requested: int
) -> Iterator[TrainReply]:
    """Yield the sum of a round's updates as one update, once all of them came.

    Args:
        replies: As the validator let them through.
        validator: Decodes their sum.
        requested: Clients that were asked.

    Raises:
        TooFewUpdates: A client is missing, so that the sum cannot be read, or it is no sum of updates.
    """
    total: State = {}
    examples, losses = 0, list[tuple[float, int]]()
    for reply in replies:
        for name, tensor in (reply.state or {}).items():
            total[name] = total[name] + tensor if name in total else tensor.clone()
        examples += reply.examples
        losses.append((reply.loss, reply.examples))
        del reply
    if not losses:
        return
    if len(losses) < requested:
        raise TooFewUpdates(
            f"only the sum of all {requested} updates can be read, and {len(losses)} of them came"
        )
    try:
        mean = validator.decode_sum(total, examples)
    except InvalidUpdate as error:
        raise TooFewUpdates(f"the sum of the updates cannot be used: {error.cause}") from error
    yield TrainReply(client=_NOBODY, examples=examples, loss=mean_loss(losses), state=mean)


def check_strategy_of_sums(config: ExperimentConfig, strategy: Strategy) -> None:
    """Refuse a strategy, or rounds, for which the sum over a round's clients is not enough.

    Raises:
        ConfigError: The strategy needs single updates, or a late update would belong to no sum.
    """
    reason = "[[update]] lets the server read only the sum of a round's updates"
    if config.round.uses_late:
        raise ConfigError(
            f'{reason}, and a late one belongs to no sum; set round.late = "discard" and round.buffer = 0'
        )
    mean = summable(strategy.inner) if isinstance(strategy, FlowerStrategy) else None
    if mean is None or not _takes_mean_only(mean):
        raise ConfigError(
            f"{reason}, and [strategy] use = {config.strategy.use!r} needs more than their mean; use fedavg, "
            "fedprox or a server optimizer such as fedadam, or take the last [[update]] table out"
        )


def _takes_mean_only(strategy: MeanStrategy) -> bool:
    """Try whether two updates contribute what their mean, weighted by examples, does as one update."""
    state = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    moved = [{"w": state["w"] + change} for change in (torch.tensor([3.0, -1.0]), torch.tensor([-5.0, 2.0]))]
    mean = {"w": (3 * moved[0]["w"] + 5 * moved[1]["w"]) / 8}
    updates = [
        ClientUpdate(client=0, position=0, examples=n, state=s, tensors={"control": s})
        for n, s in ((3, moved[0]), (5, moved[1]), (8, mean))
    ]
    try:
        one, two, both = (strategy.contribute(state, update) for update in updates)
    except Exception:
        return False
    if any(part.keys() != {MODEL} for part in (one, two, both)):
        return False
    weights = [part[MODEL].weight for part in (one, two, both)]
    expected = (weights[0] * one[MODEL].state["w"] + weights[1] * two[MODEL].state["w"]) / weights[2]
    return weights[0] + weights[1] == weights[2] and torch.allclose(expected, both[MODEL].state["w"])
