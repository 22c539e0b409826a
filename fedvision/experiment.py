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
from fedvision.errors import ConfigError
from fedvision.types import MetricFn

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy
    from torch import nn

    from fedvision.data.dataset import Dataset
    from fedvision.data.partition.split import Split


@dataclass(frozen=True, kw_only=True)
class Experiment:
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
    personal: tuple[str, ...] = ()
    """Tensors that training changes and that stay on the clients: the server cannot measure the model."""

    @classmethod
    def build(cls, config: ExperimentConfig, *, split_here: bool = True) -> Experiment:
        """Build and check everything that an experiment names; nothing is written.

        Args:
            config: The experiment.
            split_here: Whether the clients' images are this machine's to split; a server across machines has
                none, and the partition is not used.

        Raises:
            ConfigError: Something in the experiment or its data is wrong; the sentence says what to do.
        """
        prepare_process()
        import torch

        from fedvision.data.partition import split
        from fedvision.data.transforms import check_size
        from fedvision.flower.strategy import build_strategy
        from fedvision.models.build import build_model
        from fedvision.models.tensor_checks import personal, trains_alone
        from fedvision.server.checks import check_strategy
        from fedvision.training.client_trainer import check_training

        metrics = {use: registry.resolve("metric", use).call for use in config.evaluation.metrics}
        strategy = build_strategy(config.strategy, seed=config.seed, measured=config.evaluation.fraction)
        dataset: Dataset = registry.build("data", config.data)
        classes, (_, height, width, channels) = len(dataset.classes), dataset.train.images.shape
        if split_here:
            parts = split.make(
                dataset.train,
                config.partition,
                num_classes=classes,
                seed=config.seed,
                holdout=config.evaluation.holdout,
            )
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
        images = torch.randn(2, channels, height, width, generator=seeding.torch_stream(config.seed, "trial"))
        with seeding.torch_global(config.seed, "trial"):
            _check_batches(config, parts, alone=trains_alone(model, images[:1]))
            stay = personal(model, config.model.shared, images)
        return cls(
            config=config,
            dataset=dataset,
            split=parts,
            model=model,
            strategy=strategy,
            metrics=metrics,
            personal=stay,
        )

    def notices(self) -> list[str]:
        """Return what a person should know before a run: of privacy, files, classes, clients and measurement.

        Clients that are made when asked for are not gone through; that they share images is said instead.
        """
        from fedvision.algorithms.robust import trimming_notices
        from fedvision.data.duplicates import twin_notices
        from fedvision.data.partition.notices import measurement_notices, split_notices
        from fedvision.flower.privacy import privacy_notices
        from fedvision.flower.strategy import FlowerStrategy

        said = [*privacy_notices(self.strategy, self.config.privacy.noise), *self.dataset.notices]
        said += measurement_notices(self.config, self.dataset, self.personal)
        if len(self.split.clients) == 0:  # the images are on other machines
            return said
        if isinstance(self.strategy, FlowerStrategy):
            said += trimming_notices(self.strategy.inner, len(self.split.clients))
        said += twin_notices(self.dataset)
        return said + split_notices(self.split, self.dataset.classes)


def _check_batches(config: ExperimentConfig, parts: Split, *, alone: bool) -> None:
    """Refuse batches of a single image for a network that cannot train on one.

    Raises:
        ConfigError: Every batch has one image, or a client has no more than one to train on.
    """
    if alone:
        return
    why = f"[model] use = {config.model.use!r} cannot train on a batch of one image (no variance)"
    if config.training.batch_size == 1:
        raise ConfigError(f"training.batch_size = 1: {why}; set it to 2 or more")
    if parts.lazy or len(parts.clients) == 0:
        return
    from fedvision.formatting import listed

    single = [f"client {number}" for number, part in enumerate(parts.clients) if len(part) == 1]
    if single:
        raise ConfigError(
            f"{why}, and {listed(single)} has no more to train on; set partition.min_per_client where the "
            "partition has it, use fewer clients, or take a network with group norm"
        )


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
