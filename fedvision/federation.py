"""An experiment with all that it names built and checked: data, split, model, strategy.

Nothing is written here; what runs it is ``simulation``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedvision import registry, seeding
from fedvision.config import ExperimentConfig
from fedvision.reporting.wording import plural, whole
from fedvision.types import MetricFn

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy
    from torch import nn

    from fedvision.data.images import Dataset
    from fedvision.data.split import Split


@dataclass(frozen=True, kw_only=True)
class Federation:
    """An experiment with all that it names built and checked, before anything is written."""

    config: ExperimentConfig
    """The experiment."""
    dataset: Dataset
    """Images and labels."""
    split: Split
    """Which client has which images."""
    model: nn.Module
    """The network as it begins."""
    strategy: Strategy
    """Selection and aggregation, as a Flower strategy."""
    metrics: Mapping[str, MetricFn]
    """Further metrics by name."""

    @classmethod
    def build(cls, config: ExperimentConfig, *, split_here: bool = True) -> Federation:
        """Build and check everything that an experiment names; nothing is written.

        Args:
            config: The experiment.
            split_here: Whether the clients' images are this machine's to split; a server across machines has
                none, and the partition is not used.

        Raises:
            ConfigError: Something in the experiment or its data is wrong; the sentence says what to do.
        """
        prepare_process()
        from fedvision.data import groups, split
        from fedvision.data.transforms import check_size
        from fedvision.flower.checks import check_strategy
        from fedvision.flower.strategy import build_strategy
        from fedvision.models.build import build_model
        from fedvision.training.worker import check_training

        metrics = {use: registry.resolve("metric", use).call for use in config.evaluation.metrics}
        strategy = build_strategy(config.strategy, seed=config.seed, measured=config.evaluation.fraction)
        dataset: Dataset = registry.build("data", config.data)
        if split_here:
            groups.refuse_holdout(dataset.train, config.evaluation.holdout)
        classes, (_, height, width, channels) = len(dataset.classes), dataset.train.images.shape
        if split_here:
            parts = split.make(dataset.train, config.partition, num_classes=classes, seed=config.seed)
            check_strategy(strategy, len(parts.clients))
        else:
            parts = split.elsewhere(classes)
        check_training(config, channels, classes)
        check_size(config.transforms, (height, width))
        model = build_model(
            config.model,
            num_classes=classes,
            in_channels=channels,
            image_size=(height, width),
            seed=config.seed,
        )
        return cls(
            config=config, dataset=dataset, split=parts, model=model, strategy=strategy, metrics=metrics
        )

    def notices(self) -> list[str]:
        """Return what a person should know of the data: unreadable files, vacant classes, tiny clients.

        Clients that are made when asked for are not gone through; that they share images is said instead.
        """
        from fedvision.data.twins import twin_notices

        split, said = self.split, list(self.dataset.notices)
        if len(split.clients) == 0:  # the images are on other machines
            return said
        said += twin_notices(self.dataset)
        if vacant := [self.dataset.classes[c] for c in (split.totals == 0).nonzero()[0]]:
            said.append(f"no client has images of {_listed(vacant)}; the model cannot learn it")
        if split.lazy:
            images = len(split.labels) - len(split.left_out)
            said.append(
                f"{plural(len(split.clients), 'client')} draw their images from the same {whole(images)}: an "
                f"image belongs to {split.totals.sum() / images:,.1f} of them on average"
            )
        elif single := [f"client {number}" for number, part in enumerate(split.clients) if len(part) == 1]:
            said.append(f"with a single image each: {_listed(single)}")
        return said

    def inspect(self) -> str:
        """Return in text who has which images, what the loss makes of it, and what a round will send."""
        import torch

        from fedvision.models.state import get_state, size_in_bytes, travelling
        from fedvision.reporting.skew_report import Whole, skew_report
        from fedvision.training.worker import build_loss

        split, classes = self.split, self.dataset.classes
        loss = build_loss(self.config, torch.from_numpy(split.totals))
        even = loss(torch.zeros(len(classes), len(classes)), torch.arange(len(classes)))
        text = skew_report(
            split.counts(split.shown),
            classes,
            whole=Whole(len(split.clients), split.totals, split.exact, split.shown),
            weights={"loss at even logits": even.tolist()},
            state_bytes=size_in_bytes(
                get_state(self.model, travelling(self.model, self.config.model.travel))
            ),
            cohort=self._cohort(),
            left_out=len(split.left_out),
        )
        return "\n".join([text, *self.notices()])

    def _cohort(self) -> int | None:
        """Return the number of clients a round, where the strategy is ours and says so."""
        from fedvision.flower.strategy import FlowerStrategy

        if not isinstance(self.strategy, FlowerStrategy):
            return None
        rng = seeding.numpy_stream(self.config.seed, "select", 1)
        return len(self.strategy.inner.select(1, range(len(self.split.clients)), rng))


def _listed(names: list[str], longest: int = 5) -> str:
    more = f" and {len(names) - longest} more" if len(names) > longest else ""
    return ", ".join(names[:longest]) + more


def prepare_process() -> None:
    """Switch Flower's telemetry, update check and log lines off, and keep arithmetic threads from spinning.

    What the user set stays. Two OpenMP threads that spin at barriers made a run twice as slow on a machine
    that had other work. It takes effect where torch is not imported yet.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    from fedvision.flower.internals import quiet

    quiet()
