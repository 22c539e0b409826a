"""``[evaluation]``, ``[round]``, ``[clock]`` and ``[privacy]``: what happens around the clients' training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedvision.tables import at_least, require, within


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and on what the global model is measured."""

    every: int = 1
    """Rounds between measurements; the last round is always measured."""
    holdout: float = 0.0
    """Share of each client's images kept from training for a measurement on the client itself."""
    fraction: float = 1.0
    """Share of the clients that measure on what they kept, drawn anew each time; not for stock strategies."""
    calibrate: bool = False
    """Give the final model the temperature that makes what clients held out most likely, from their sums."""
    keep: Literal["last", "best"] = "last"
    """``best``: beside the last model, in the run folder's ``best``, the one whose ``score`` was highest."""
    score: str = "balanced_accuracy"
    """By what a model is the best one: a score of what clients hold out, never of test images."""
    patience: int = 0
    """The run ends after so many measurements without a better ``score`` than before; 0 is never."""
    with_training: bool = False
    """Clients that train measure first, the model that they receive, and report it with their update: a
    round has no messages for measuring, but the last one, whose model goes out once more to all clients."""
    batch_size: int = 100
    """Images a forward pass."""
    metrics: tuple[str, ...] = ()
    """Further numbers from what is counted: ``geometric-mean``, ``kappa`` or ``"module:attr"``."""
    statistics: tuple[str, ...] = ()
    """Sums over the clients' training images in the run's record: ``class-counts`` or ``"module:attr"``."""

    def __post_init__(self) -> None:
        at_least(1, self, "evaluation.", "every", "batch_size")
        at_least(0, self, "evaluation.", "patience")
        require(0 < self.fraction <= 1, "evaluation.fraction", f"must be > 0 and <= 1, not {self.fraction}")
        require(0 <= self.holdout < 1, "evaluation.holdout", f"must be >= 0 and < 1, not {self.holdout}")
        if self.calibrate:
            require(self.holdout > 0, "evaluation.calibrate", "needs evaluation.holdout > 0 to judge by")
        for key, wanted in (("keep = 'best'", self.keep == "best"), ("patience", self.patience > 0)):
            if wanted:
                require(self.holdout > 0, f"evaluation.{key}", "needs evaluation.holdout > 0 to judge by")
                now = "needs evaluation.with_training = false: a model is judged when it is there"
                require(not self.with_training, f"evaluation.{key}", now)
        if self.with_training:
            key, share = "evaluation.with_training", self.fraction
            require(self.holdout > 0, key, "needs evaluation.holdout > 0: clients keep nothing to measure on")
            require(share == 1, key, f"needs evaluation.fraction = 1, not {share}: who trains measures")


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """What a round waits for, and what becomes of answers that are late or bad.

    Buffer and weight by age: Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation",
    arXiv 2106.06639; Xie, Koyejo, Gupta 2019, "Asynchronous Federated Optimization", arXiv 1903.03934.
    """

    min_clients: int = 1
    """Quorum: a round with fewer usable answers leaves the model as it was, and counts as failed."""
    deadline: float = 0.0
    """Seconds that a round's training may take, and then its measurement on clients; 0 waits for all."""
    wait_after_quorum: float = 0.0
    """Seconds to wait for the rest once the quorum is there; 0 waits until the deadline."""
    late: Literal["discard", "next-round"] = "discard"
    """An answer that comes after its round is discarded, or used in the round in which it comes."""
    staleness: float = 0.5
    """a: a change of the model that is s rounds old counts (1 + s)^-a; 0 counts all in full."""
    max_staleness: int = 10
    """Rounds after which an answer is discarded in any case."""
    buffer: int = 0
    """K: a round ends with K usable answers, new or late; late ones are used; 0 waits for all."""
    concurrency: int = 0
    """M: clients at work at a time where there is a buffer; 0 takes all that the strategy selects."""
    norm_limit: float = 1000.0
    """A change of the model is refused if its norm is so many times the usual one; 0 takes all of them."""
    set_aside_after: int = 3
    """Refused replies after which a client is not selected again in this run; 0: no limit."""
    failed_rounds: int = 3
    """Failed rounds in a row that end the run."""

    def __post_init__(self) -> None:
        at_least(1, self, "round.", "min_clients", "max_staleness", "failed_rounds")
        at_least(0, self, "round.", "deadline", "wait_after_quorum", "staleness", "norm_limit")
        at_least(0, self, "round.", "buffer", "concurrency", "set_aside_after")
        require(
            not self.buffer or self.min_clients <= self.buffer,
            "round.min_clients",
            f"must be <= round.buffer, which is {self.buffer}, not {self.min_clients}",
        )
        require(
            not self.concurrency or 0 < self.buffer <= self.concurrency,
            "round.concurrency",
            f"is {self.concurrency} and needs a round.buffer of 1 to as many, not {self.buffer}",
        )

    @property
    def uses_late(self) -> bool:
        """Whether answers that come after their round are used."""
        return self.late == "next-round" or self.buffer > 0


@dataclass(frozen=True, kw_only=True)
class ClockConfig:
    """Simulated time: how long clients take to train. Machines far apart have a clock of their own."""

    seconds_per_image: float = 0.0
    """Of a client of middling speed, for each image of each epoch; at 0 all answer at once."""
    spread: float = 0.0
    """Deviation of the logarithm of the clients' speeds: at 1 one client in six is 2.7 times slower."""
    jitter: float = 0.0
    """The same for one client from round to round."""

    def __post_init__(self) -> None:
        at_least(0, self, "clock.", "seconds_per_image")
        within(0, 10, self, "clock.", "spread", "jitter")


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Where the noise comes from that a strategy adds for privacy."""

    noise: Literal["secret", "reproducible"] = "secret"
    """What a strategy draws from global generators while it combines updates: from the operating system, so
    that nobody can take it off again and no two runs are alike; or from ``seed``, which every client knows:
    the same bits in every run, and NO privacy."""
