"""The methods that the tables compare: what each changes of a protocol's experiment, and its four settings.

A method without a strength of its own is tuned in four learning rates, one with a strength in two of each; in
the smaller tables all have their defaults and two rates.
Everything else is the method's default in fedvision, which docs/algorithms.md describes. The network is the
protocol's but for the head, where a method is about that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocol import Method, Tables, merged

RATES = (0.1, 0.2, 0.4, 0.8)
TWO_RATES = (0.1, 0.4)
GLOBAL = {"prior": "global"}
"""The federation's class counts, where a loss takes the clients' own by default."""


def rates(*lr: float) -> list[Tables]:
    """Return learning rates as settings."""
    return [{"training": {"lr": one}} for one in lr or RATES]


def fixed() -> list[Tables]:
    """Return the only setting of a method that is not tuned."""
    return [{}]


def strengths(part: str, key: str, values: Sequence[Any], lr: Sequence[float] = (0.2, 0.4)) -> list[Tables]:
    """Return two values of a part's key with each of two learning rates as settings."""
    return [merged({"training": {"lr": one}}, {part: {key: value}}) for one in lr for value in values]


def loss(use: str, **keys: Any) -> Tables:
    """Return what a loss changes of FedAvg with cross-entropy."""
    return {"loss": {"use": use, **keys}}


def strategy(use: str, **keys: Any) -> Tables:
    """Return what a strategy changes of FedAvg with cross-entropy."""
    return {"strategy": {"use": use, **keys}}


def sampler(use: str, **keys: Any) -> Tables:
    """Return what a sampler changes of FedAvg with cross-entropy."""
    return {"training": {"sampler": {"use": use, **keys}}}


LONGTAIL = Method(
    merged(loss("logit-adjusted", **GLOBAL), strategy("longtail"), {"training": {"weight_decay": 0.0005}}),
    strengths("transforms", "mixup", [0.0, 0.1], lr=(0.4, 0.8)),
)
"""Its parts were chosen, and the defaults of ``longtail`` set, on images set aside in the same way, in some
sixty runs of the first protocol; each table then tunes it like the others."""
ADJUSTED = loss("logit-adjusted", **GLOBAL)
METHODS: Mapping[str, Method] = {
    "FedAvg": Method({}, rates()),
    # Losses
    "Focal": Method(loss("focal"), strengths("loss", "gamma", [1.0, 2.0])),
    "class-balanced focal": Method(
        loss("class-balanced-focal", **GLOBAL), strengths("loss", "gamma", [1.0, 2.0])
    ),
    "effective-number weights": Method(
        loss("weighted", scheme="effective-number", **GLOBAL), strengths("loss", "beta", [0.99, 0.999])
    ),
    "LDAM": Method(loss("ldam", drw_round=50, **GLOBAL), strengths("loss", "max_margin", [0.3, 0.5])),
    "logit adjustment, clients' counts": Method(
        loss("logit-adjusted", prior="local"), strengths("loss", "tau", [0.5, 1.0])
    ),
    "logit adjustment": Method(ADJUSTED, rates()),
    "logit adjustment, mixed counts": Method(
        loss("logit-adjusted", prior="mixed"), strengths("loss", "local_share", [0.2, 0.5])
    ),
    "FedLC": Method(loss("fedlc"), strengths("loss", "tau", [0.5, 1.0])),
    "FedRS": Method(loss("fedrs"), strengths("loss", "alpha", [0.5, 0.9])),
    # Samplers, mixup, what is done to a finished model
    "balanced sampler": Method(sampler("balanced"), rates()),
    "square-root sampler": Method(sampler("square-root"), rates()),
    "effective-number sampler": Method(
        sampler("effective"), strengths("training", "sampler", [{"beta": 0.9}, {"beta": 0.99}])
    ),
    "progressive sampler": Method(sampler("progressive"), rates()),
    "Balanced-MixUp": Method(
        {"transforms": {"mixup_partner": "balanced"}}, strengths("transforms", "mixup", [0.1, 0.2])
    ),
    "logit adjustment afterwards": Method({}, rates(), after="tau"),
    "equal norms afterwards": Method({}, rates(), after="norms"),
    # Strategies for unlike clients
    "FedProx": Method(strategy("fedprox"), strengths("strategy", "mu", [0.001, 0.01])),
    "SCAFFOLD": Method(strategy("scaffold"), rates()),
    "FedNova": Method(strategy("fednova"), rates()),
    "FedDyn": Method(strategy("feddyn"), strengths("strategy", "alpha", [0.01, 0.1])),
    "MOON": Method(strategy("moon"), strengths("strategy", "mu", [0.1, 1.0])),
    "FedAvgM": Method(strategy("fedavgm"), strengths("strategy", "momentum", [0.5, 0.8])),
    "FedAdam": Method(strategy("fedadam", tau=0.01), strengths("strategy", "server_lr", [0.01, 0.03])),
    "FedNTD": Method(strategy("fedntd"), strengths("strategy", "beta", [0.3, 1.0])),
    "FedVLS": Method(
        merged(strategy("fedvls"), loss("logit-adjusted", prior="local")),
        strengths("strategy", "vacant", [0.1, 1.0]),
    ),
    "FedLF": Method(merged(strategy("fedlf"), loss("fedlf")), strengths("strategy", "centre", [0.01, 0.1])),
    "FedYoYo": Method(
        merged(strategy("fedyoyo", warmup=20), loss("logit-adjusted", prior="mixed", tau=1.5)),
        strengths("strategy", "strength", [0.3, 0.6]),
    ),
    "q-FedAvg": Method(strategy("q-fedavg", lipschitz=1.0), strengths("strategy", "q", [0.02, 0.1])),
    "FedRoD, generic head": Method(
        merged(
            strategy("fedrod"),
            loss("balanced-softmax", prior="local"),
            {"model": {"head": "personalized", "personal": ["head.personal.*"]}},
        ),
        rates(),
    ),
    "FedETF": Method(merged(loss("balanced-softmax", prior="local"), {"model": {"head": "etf"}}), rates()),
    "FedLoGe": Method(
        merged(strategy("fedloge"), {"model": {"head": "realigned", "personal": ["head.personal.*"]}}),
        rates(),
    ),
    "BalanceFL": Method(
        merged(strategy("balancefl"), sampler("balanced")), strengths("strategy", "augment", [0.0, 1.0])
    ),
    "Fed-GraB": Method(strategy("fedgrab"), strengths("strategy", "tail", [0.5, 1.0])),
    "head rows by support": Method(strategy("fedavg-support"), rates()),
    "CCVR": Method(strategy("ccvr"), rates()),
    "CReFF": Method(strategy("creff"), rates()),
    "RUCR": Method(strategy("rucr"), strengths("strategy", "weight", [0.1, 1.0])),
    "FedReLa": Method(strategy("fedrela", warmup=50), strengths("strategy", "share", [0.05, 0.2])),
    "logit adjustment, FedAvgM": Method(
        merged(ADJUSTED, strategy("fedavgm")), strengths("strategy", "momentum", [0.5, 0.8])
    ),
    "longtail": LONGTAIL,
}


def at_two_rates(*names: str, lr: Sequence[float] = TWO_RATES) -> dict[str, Method]:
    """Return methods for the smaller tables, with one budget for all: defaults, and two learning rates."""
    chosen = {name: METHODS[name] for name in names}
    return {name: Method(own.tables, rates(*lr), own.after) for name, own in chosen.items()}
