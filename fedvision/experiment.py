"""An experiment with all that it names built and checked: data, split, model, strategy.

Nothing is written here; what runs it is ``simulation``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision import registry, seeding
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, plugin_errors
from fedvision.inputs import for_trial
from fedvision.libraries import load_libraries
from fedvision.stages import stage
from fedvision.types import MetricFn

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy
    from torch import nn

    from fedvision.data.dataset import Dataset
    from fedvision.data.partition.split import Split
    from fedvision.models.weights import LoadedWeights
    from fedvision.models.weights_file import WeightsFile
    from fedvision.tasks.base import Task
    from fedvision.updates.chain import UpdateChain


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment with all that it names built and checked, before anything is written."""

    config: ExperimentConfig
    """The experiment."""
    task: Task
    """What is learned from the images."""
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
    weights: LoadedWeights | None = None
    """What the network and its parts began with, where that is files."""
    plugins: Path | None = field(default_factory=registry.allowed_folder)
    """The folder in which modules named ``"module:attr"`` were found first; those of the run as well."""
    updates: UpdateChain
    """What is done to a client's update before it travels."""

    @classmethod
    def build(
        cls, config: ExperimentConfig, *, split_here: bool = True, dataset: Dataset | None = None
    ) -> Experiment:
        """Build and check everything that an experiment names; nothing is written.

        Args:
            config: The experiment.
            split_here: Whether the clients' images are this machine's to split; a server across machines has
                none, and the partition is not used.
            dataset: What ``config.data`` gives, where somebody has it already.

        Raises:
            ConfigError: Something in the experiment or its data is wrong; the message names the remedy.
        """
        load_libraries()
        from fedvision.data.partition import split
        from fedvision.flower.strategy import build_strategy
        from fedvision.models.cosine_head import begin
        from fedvision.server.checks import check_method, check_score, check_strategy, check_whole_models
        from fedvision.tasks.base import build_task
        from fedvision.training.feature_cache import check_views

        metrics = {use: registry.resolve("metric", use).call for use in config.evaluation.metrics}
        strategy = build_strategy(config.strategy, seed=config.seed, measured=config.evaluation.fraction)
        config = _checked(config, strategy)
        dataset = read_data(config) if dataset is None else dataset
        config, dataset, files, told = _settled(config, dataset, here=split_here)
        task = build_task(config.task)
        if not split_here:
            dataset = _in_form(dataset, task)
        with plugin_errors(f"[task] use = {config.task.use!r}: its check"):
            task.check(config, dataset)
        check_score(config, task, len(dataset.classes))
        _, height, width, channels = dataset.train.images.shape
        check_method(config, strategy, dataset.classes, (height, width, channels))
        stage("building the split, the model and the strategy")
        if split_here:
            parts = _split(config, dataset, task)
            check_strategy(strategy, len(parts.clients))
        else:
            parts = split.elsewhere(len(dataset.classes))
        model = _model(config, dataset, task)
        weights = begin(model, config.model, files, dataset.classes, told)
        check_views(config, model, dataset.train)
        personal = _try(config, task, strategy, model, parts, dataset)
        check_whole_models(config, strategy, personal)
        return cls(
            config=config,
            task=task,
            dataset=dataset,
            split=parts,
            model=model,
            strategy=strategy,
            metrics=metrics,
            personal=personal,
            weights=weights,
            updates=_updates(config, model, strategy),
        )

    def notices(self) -> list[str]:
        """Return what a person should know before a run: of privacy, files, classes, clients and measurement.

        Clients that are made on access are not gone through; a notice says that they share images.
        """
        from fedvision.algorithms.robust import trimming_notices
        from fedvision.data.duplicates import twin_notices
        from fedvision.data.partition.notices import column_notices, measurement_notices, split_notices
        from fedvision.flower.private_strategies import privacy_notices
        from fedvision.flower.strategy import FlowerStrategy
        from fedvision.server.checks import method_notices, whole_model_notices

        sentences = [*privacy_notices(self.strategy, self.config.privacy.noise), *self.dataset.notices]
        sentences += measurement_notices(self.config, self.dataset, self.personal, self.task.class_counts)
        sentences += whole_model_notices(self.config, self.strategy)
        sentences += self.weights.notices if self.weights else ()
        sentences += self._frozen_at_random()
        sentences += method_notices(self.config, self.strategy)
        if self.config.model.expand.use and self.weights is None and getattr(self.strategy, "trains", True):
            sentences.append(
                "model.expand expects standardised features, and nobody has measured these; begin with "
                "model.weights = the folder of a run with [strategy] use = 'closed-form'"
            )
        if len(self.split.clients) == 0:  # the images are on other machines
            return sentences + self._needed_there()
        if isinstance(self.strategy, FlowerStrategy):
            sentences += trimming_notices(self.strategy.inner, len(self.split.clients))
        sentences += column_notices(self.config, self.dataset)
        sentences += twin_notices(self.dataset)
        return sentences + split_notices(self.split, self.dataset.classes)

    def _frozen_at_random(self) -> list[str]:
        """Return what says that numbers stay as the seed draws them."""
        from fedvision.models.part_config import parts

        model, files = self.config.model, self.weights.files if self.weights else {}
        trained = {"": model.train} | {name: one.train for name, one in parts(model).items()}
        return [
            f"{key}.train = {train!r} freezes numbers that the seed draws, as {key}.weights is empty"
            for name, train in trained.items()
            if train != "all" and not any(f"{name}.".startswith(f"{file}." if file else "") for file in files)
            for key in (f"model.{name}" if name else "model",)
        ]

    def _needed_there(self) -> list[str]:
        """Return what clients' machines must have of the network."""
        from fedvision.models.parameter_groups import own_weights_needed
        from fedvision.models.weights_file import key_of

        needed = own_weights_needed(self.model, self.config.model)
        files = self.weights.files if self.weights else {}
        return [
            "the server sends only what is trained, so each client's machine needs a copy of the file of "
            f"{key_of(name)} (SHA-256 {files[name][:12]}...), named as "
            f"{f'parts.{name}' if name else 'weights'} in [model] of its file"
            for name in needed
            if name in files
        ]


def read_data(config: ExperimentConfig) -> Dataset:
    """Read the images and labels that an experiment names.

    Raises:
        DataError: They cannot be read, or there are none.
    """
    load_libraries()
    from fedvision.data.sources.build import build_dataset

    stage(f"reading the data: {config.data.use}")
    return build_dataset(config.data)


def _checked(config: ExperimentConfig, strategy: Strategy) -> ExperimentConfig:
    """Return the experiment with what its strategy makes personal, or refuse what cannot go together."""
    from fedvision.server.checks import check_personal, check_untrained, with_personal

    config = with_personal(config, strategy)
    check_personal(config, strategy)
    check_untrained(config, strategy)
    return config


def _updates(config: ExperimentConfig, model: nn.Module, strategy: Strategy) -> UpdateChain:
    """Return the transforms of updates; the strategy must work with them."""
    from fedvision.server.summed_updates import check_strategy_of_sums
    from fedvision.updates import chain

    updates = chain.build(config, model)
    if updates.sum_only:
        check_strategy_of_sums(config, strategy)
    return updates


def _in_form(dataset: Dataset, task: Task) -> Dataset:
    """Return a data set that does not tell the form of its labels with none of the task's form."""
    if len(dataset.train) or dataset.test is not None:
        return dataset
    size = dataset.train.images.shape[1:3]
    labels = task.example_targets(len(dataset.classes), size)[:0].numpy()
    return replace(dataset, train=replace(dataset.train, labels=labels))


def _split(config: ExperimentConfig, dataset: Dataset, task: Task) -> Split:
    """Spread the training images over the clients, by what the task sees in their targets."""
    from fedvision.data.partition import split

    return split.make(
        dataset.train,
        config.partition,
        num_classes=len(dataset.classes),
        seed=config.seed,
        holdout=config.evaluation.holdout,
        strata=task.strata,
        counter=task.class_counts,
    )


def _model(config: ExperimentConfig, dataset: Dataset, task: Task) -> nn.Module:
    """Build the network for images as training sees them, with the numbers that the seed draws.

    Raises:
        ConfigError: The model, the training or the size of the images does not fit the data.
    """
    from fedvision.data.transforms import check_size, input_shape
    from fedvision.models.build import build_model
    from fedvision.training.training_check import check_training

    classes, image = len(dataset.classes), dataset.train.images.shape[1:]
    channels, height, width = input_shape(config.transforms, image)
    size = (height, width)
    check_training(config, image[2], classes)
    check_size(config.transforms, size)
    return build_model(
        config.model, task=task, num_classes=classes, in_channels=channels, image_size=size, seed=config.seed
    )


def _settled(
    config: ExperimentConfig, dataset: Dataset, *, here: bool
) -> tuple[ExperimentConfig, Dataset, Mapping[str, WeightsFile], tuple[str, ...]]:
    """Return an experiment without what its data or weights decide, its data, the weights, and notices.

    Args:
        config: The experiment; ``[transforms]`` become as the weights, which are given by part, need them.
        dataset: Its data, which get what the network reads beside the pixels.
        here: Whether all clients' images are in it.

    Raises:
        ConfigError: The weights cannot be read, ``[transforms]`` contradicts them, or ``[model.inputs]`` does
            not fit the data.
    """
    from fedvision.models import cosine_head, preprocessing, weights_file
    from fedvision.models.expansions import with_seed

    model = cosine_head.settled(with_seed(config.model, config.seed), dataset.classes)
    files = weights_file.read_all(model)
    _, height, width, _ = dataset.train.images.shape
    transforms, model, told = preprocessing.resolve(config.transforms, model, files, (height, width))
    config = replace(config, transforms=transforms, model=model)
    return *_with_inputs(config, dataset, here=here), files, told


def _with_inputs(
    config: ExperimentConfig, dataset: Dataset, *, here: bool
) -> tuple[ExperimentConfig, Dataset]:
    """Return an experiment whose inputs beside the pixels are settled, and the data with their numbers.

    Args:
        config: The experiment.
        dataset: Its images with their columns.
        here: Whether all clients' columns are in it.

    Raises:
        ConfigError: Data on other machines would have to settle an input, or mixup would blend inputs.
        DataError: A column is missing, or a cell is not as it must be.
    """
    from fedvision.data.sources import inputs

    if not config.model.inputs:
        return config, dataset
    if config.transforms.mixup:
        raise ConfigError("transforms.mixup blends images, and model.inputs cannot be blended; set it to 0")
    if not here:
        inputs.check_settled(config.model.inputs)
    found = inputs.settled(config.model.inputs, dataset)
    config = replace(config, model=replace(config.model, inputs=found))
    return config, inputs.with_inputs(dataset, found)


def _try(
    config: ExperimentConfig, task: Task, strategy: Strategy, model: nn.Module, parts: Split, dataset: Dataset
) -> tuple[str, ...]:
    """Try a model on two random images: its training, its outputs, and a round of the strategy with it.

    Returns:
        The personal tensors that training changes and without which the model is not whole.

    Raises:
        ConfigError: Task, loss, strategy or the clients' images do not fit the model.
    """
    import torch

    from fedvision.data.transforms import input_shape
    from fedvision.models.parameter_groups import ParameterGroups
    from fedvision.models.personalized_heads import neutral_names
    from fedvision.models.recomputation import check_blocks
    from fedvision.models.tensor_checks import trained_names, trains_alone
    from fedvision.server.rehearsal import rehearse, rehearse_client_half
    from fedvision.training.task_check import check_task

    check_blocks(config, model)
    generic = getattr(getattr(strategy, "inner", None), "trains_generic", False)
    neutral = neutral_names(model) if generic else frozenset()
    classes, image = len(dataset.classes), dataset.train.images.shape[1:]
    shape = input_shape(config.transforms, image)
    drawn = torch.randn(2, *shape, generator=seeding.torch_stream(config.seed, "trial"))
    images = for_trial(drawn, config.model.inputs)
    with seeding.global_streams(config.seed, "trial"):
        alone = not getattr(strategy, "trains", True) or trains_alone(model, images[:1])
        _check_batches(config, parts, alone=alone)
        own = [name for name in ParameterGroups.of(model, config.model).personal if name not in neutral]
        personal = trained_names(model, own, images)
        check_task(config, task, model, images, classes)
        rehearse_client_half(config, strategy, model, images, classes)
        rehearse(config, strategy, model, (image[0], image[1], image[2]), classes)
    return personal


def _check_batches(config: ExperimentConfig, parts: Split, *, alone: bool) -> None:
    """Refuse batches of a single image for a network that cannot train on one.

    Raises:
        ConfigError: Every batch has one image, or one of the first thousand clients has no other.
    """
    if alone:
        return
    why = f"[model] use = {config.model.use!r} cannot train on a batch of one image"
    if config.training.batch_size == 1:
        raise ConfigError(f"training.batch_size = 1: {why}; set it to 2 or more")
    from fedvision.formatting import listed

    # Of a million clients that are made on access, the others fail in their round.
    known = range(min(len(parts.clients), 1000) if parts.lazy else len(parts.clients))
    single = [f"client {number}" for number in known if parts.size(number) == 1]
    if single:
        raise ConfigError(
            f"{why}, and {listed(single)} has no more to train on; set partition.min_per_client or "
            "partition.min_images where the partition has it, use fewer clients, or take a network that can, "
            "as those with group norm do"
        )
