"""Stock strategies that promise privacy: which of them keep the promise here, and notices on them.

``DifferentialPrivacyServerSideFixedClipping`` clips every update to C and adds noise of deviation z C / n
to what the wrapped strategy makes of n updates. That is z times what one client can move if it is their
plain mean (McMahan et al. 2018, arXiv 1710.06963): so updates count equally here, whatever images are
behind them, fewer than n are no round, and a strategy that does more than average is refused.

Those with clipping at the client rely on a mod in the client's app (``fixedclipping_mod``,
``adaptiveclipping_mod``), which no client here has: the noise would be scaled to a bound that no update
keeps. ``DifferentialPrivacyServerSideAdaptiveClipping`` of flwr 1.41 scales the noise to the bound of the
next round, and moves the bound away from the wanted quantile instead of towards it (Andrew et al. 2021,
arXiv 1905.03871).

Flower's clipping divides the bound by an update's norm, and a run ended with the first client whose training
changed nothing. Such an update is within every bound: it is not scaled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Message, MetricRecord
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Strategy

from fedvision.errors import PluginError, TooFewUpdates
from fedvision.flower import codec

_CLIENTS_CLIP: tuple[type, ...] = (
    stock.DifferentialPrivacyClientSideFixedClipping,
    stock.DifferentialPrivacyClientSideAdaptiveClipping,
)
_PRIVATE = stock.DifferentialPrivacyServerSideFixedClipping
_INSTEAD = "use flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping"


def check_privacy(strategy: Strategy) -> None:
    """Refuse a strategy, or one that it wraps, whose noise is not scaled to what a client can move.

    Raises:
        PluginError: It is one; the message names the one to use instead.
    """
    for layer in _layers(strategy):
        if isinstance(layer, _CLIENTS_CLIP):
            name = next(kind.__name__ for kind in _CLIENTS_CLIP if isinstance(layer, kind))
            raise PluginError(
                f"[strategy] {name} relies on clients that clip their updates, and clients of fedvision do "
                f"not: there would be no privacy; {_INSTEAD}"
            )
        if isinstance(layer, stock.DifferentialPrivacyServerSideAdaptiveClipping):
            raise PluginError(
                "[strategy] DifferentialPrivacyServerSideAdaptiveClipping scales the noise to the next "
                f"round's bound, not to that of the updates: the noise can be too small; {_INSTEAD}"
            )
        if isinstance(layer, _PRIVATE):
            _check_mean(layer.strategy)


def _check_mean(inner: Strategy) -> None:
    """Refuse a wrapped strategy that is not the mean of the updates by the key that is made equal.

    Raises:
        PluginError: It is another one.
    """
    averages = getattr(type(inner), "aggregate_train", None) is stock.FedAvg.aggregate_train
    if not averages or getattr(inner, "weighted_by_key", None) != codec.EXAMPLES:
        name = type(inner.inner).__name__ if hasattr(inner, "inner") else type(inner).__name__
        raise PluginError(
            "[strategy] DifferentialPrivacyServerSideFixedClipping scales its noise to a plain mean of "
            f"updates, and {name} gives another one: the noise can be too small; wrap "
            f"flwr.serverapp.strategy:FedAvg or FedProx, with weighted_by_key = {codec.EXAMPLES!r}"
        )


def counted_equally(strategy: Strategy, replies: Iterator[Message]) -> Iterator[Message]:
    """Return replies as a strategy needs them for the noise it adds; those for others stay as they are.

    Args:
        strategy: Is to combine them.
        replies: Of a round's training; the number of images of each is made 1. Reading them to the
            end raises TooFewUpdates where fewer came than the noise is scaled to: each could move more than
            it hides.
    """
    private = [layer for layer in _layers(strategy) if isinstance(layer, _PRIVATE)]
    return _equal(replies, max(layer.num_sampled_clients for layer in private)) if private else replies


def _equal(replies: Iterator[Message], needed: int) -> Iterator[Message]:
    came = 0
    for reply in replies:
        if not reply.has_error():
            codec.record(reply.content, codec.METRICS, MetricRecord)[codec.EXAMPLES] = 1
            came += 1
        yield reply
        del reply  # before the next one is made, or two models are in memory
    if came < needed:
        raise TooFewUpdates(
            f"the noise is scaled to the {needed} updates of strategy.num_sampled_clients, but {came} came; "
            "have more clients, or lower it, which adds noise"
        )


class _Bound(float):
    """A clipping bound that is infinitely many times a norm of 0, so that Flower scales by 1 there."""

    def __truediv__(self, norm: float) -> float:
        return math.inf if norm == 0 else float(self) / norm


@contextmanager
def zero_updates_unscaled(strategy: Strategy) -> Iterator[None]:
    """Let stock strategies that clip take updates of norm 0 while they combine a round's replies.

    Args:
        strategy: With those that it wraps; their bounds are plain numbers again afterwards.
    """
    private = [layer for layer in _layers(strategy) if isinstance(layer, _PRIVATE)]
    for layer in private:
        layer.clipping_norm = _Bound(layer.clipping_norm)
    try:
        yield
    finally:
        for layer in private:
            layer.clipping_norm = float(layer.clipping_norm)


def privacy_notices(strategy: Strategy, noise: str) -> list[str]:
    """Return what a person should know of a strategy's privacy.

    Args:
        strategy: With those that it wraps.
        noise: ``privacy.noise``.
    """
    if noise == "reproducible" and any(isinstance(layer, _PRIVATE) for layer in _layers(strategy)):
        return [
            'privacy.noise = "reproducible" draws the noise from the experiment\'s seed, which every client '
            "knows: the model is NOT private"
        ]
    return []


def _layers(strategy: Strategy) -> list[Strategy]:
    """Return a strategy and those that it wraps, from the outside in."""
    found = [strategy]
    while isinstance(inner := getattr(found[-1], "strategy", None), Strategy) and inner not in found:
        found.append(inner)
    return found
