"""What a client reveals of its images beside its updates: the owner's ``[share]``, and what follows from it.

Class counts, further statistics and generators leave this machine by these rules alone. ``shared_sums``
applies them to a query; ``masked_counts`` keeps the masks under which only a sum can be read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedvision.data.image_counts import ImageCounts, PerImage
from fedvision.errors import ConfigError
from fedvision.files import replace_file
from fedvision.tables import require


@dataclass(frozen=True, kw_only=True)
class ShareConfig:
    """What the machine reports to the server beside model updates."""

    counts: Literal["none", "plain", "noisy", "masked"] = "none"
    """Class counts: not at all, as they are, with noise, or masked so that only the sum can be read."""
    epsilon: float = 1.0
    """Privacy loss of ``noisy``: Laplace noise of scale 1 / epsilon on every class; smaller hides more. Of L
    labels, any number an image, (L + 1) / epsilon on every label and on the number of images."""
    statistics: tuple[str, ...] = ()
    """Names of further statistics that the server may query, such as ``feature-moments``, shared as
    ``counts`` says. Their sums reveal more of the images than class counts do, which need no mention here."""
    generators: bool = False
    """Whether a strategy, such as ``fedgan``, may train a generator on the images and send it: it can
    reproduce images that it was trained on, above all of a class that has few."""
    certificate: str = ""
    """For ``masked``: file of the certificate of ``superlink.key``; it proves this client to the others."""
    authority: str = ""
    """For ``masked``: file of the authority that proves the others; empty is superlink.root_certificate."""

    def __post_init__(self) -> None:
        require(0 < self.epsilon < math.inf, "share.epsilon", f"must be > 0 and finite, not {self.epsilon}")
        require(
            self.counts != "masked" or bool(self.certificate),
            "share.certificate",
            "must name this client's client.crt where share.counts is masked: it proves to the other clients "
            "that this one is no invention of the server",
        )

    def check_statistic(self, use: str) -> None:
        """Check that the owner shares a statistic's sums.

        Raises:
            ConfigError: He does not.
        """
        if use not in ("class-counts", *self.statistics):
            raise ConfigError(
                f"[statistic] use = {use!r}: its sums reveal more of the images than class counts, and the "
                "owner has not allowed it; whoever wants to take part adds its name to share.statistics"
            )

    def check_client_half(self, name: str, half: Callable[..., Any]) -> None:
        """Check that the owner shares what a strategy's client half sends.

        Raises:
            ConfigError: It sends class counts or a generator, and he does not.
        """
        if getattr(half, "sends_counts", False) and self.counts != "plain":
            raise ConfigError(
                f"the client half {name!r} of the strategy sends this client's class counts, or what reveals "
                f'them, and share.counts is {self.counts!r}; set it to "plain" in the client\'s file, '
                "or leave the run"
            )
        if getattr(half, "sends_generator", False) and not self.generators:
            raise ConfigError(
                f"the client half {name!r} of the strategy sends a generator, which can reproduce this "
                "client's images; set share.generators = true in the client's file, or leave the run"
            )


def reported_counts(
    own: ImageCounts, share: ShareConfig, memo: Path, *, needed: bool, per_image: PerImage = "one class"
) -> ImageCounts:
    """Return what a client reports of its training images, zeros where it reports nothing.

    Noise is drawn once for a run and stored: a second request must not allow to take the mean. With noise a
    class of few images may be reported as a negative number; only the federation's sum is raised to 0.
    Laplace mechanism: Dwork et al. 2006, "Calibrating noise to sensitivity in private data analysis". An
    image of one class changes one count by 1, and the images are reported as the sum of the noisy counts. An
    image of several labels can change all L counts and the number of images, so these have (L + 1) times the
    noise.

    Args:
        own: The true numbers, of C classes.
        share: What the owner allows.
        memo: File that stores the reported counts.
        needed: Whether the experiment's loss rests on the federation's counts.
        per_image: What an image adds to class counts.

    Raises:
        ConfigError: They are needed and not shared, or one image can change them by any number and noise
            that would hide it is asked for.
    """
    if share.counts == "none":
        if needed:
            raise ConfigError(
                "the experiment's loss needs the federation's class counts (loss.prior is not local) and "
                'this client shares none; set share.counts to "masked", "noisy" or "plain" in its file, or '
                "leave the run"
            )
        return ImageCounts.none(len(own.counts))
    if share.counts == "masked":  # they come with others' in a sum
        return ImageCounts.none(len(own.counts))
    if share.counts == "plain":
        return own
    if per_image == "any number":
        raise ConfigError(
            'share.counts = "noisy" hides one image behind noise, and under this experiment\'s task an image '
            'may add any number to a class\'s count; set share.counts to "masked", "plain" or "none" in the '
            "client's file, or leave the run"
        )
    if memo.exists():
        return ImageCounts.from_table(json.loads(memo.read_text()))
    reported = _noisy(own, share.epsilon, per_image)
    memo.parent.mkdir(parents=True, exist_ok=True)
    replace_file(memo, json.dumps(reported.to_table()))
    return reported


def _noisy(own: ImageCounts, epsilon: float, per_image: PerImage) -> ImageCounts:
    several = per_image != "one class"
    exact = own.numbers() if several else list(own.counts)
    changed = len(exact) if several else 1
    # Not from the experiment's seed, which the server knows.
    noise = np.random.default_rng().laplace(0, changed / epsilon, len(exact))
    # A negative number stays: raised to 0 here it would pull the sum over many clients up.
    noisy = [round(number + more) for number, more in zip(exact, noise, strict=True)]
    return ImageCounts.from_numbers(noisy if several else [*noisy, sum(noisy)])
