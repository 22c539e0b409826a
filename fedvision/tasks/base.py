"""What is learned from an image: its targets, what the network makes of it, what is counted of that.

A task is one file, a plug-in of kind ``task``, and the one place that knows the form of targets and of a
network's outputs. Training, measurement and engines hand both on without a look; whatever carries, masks,
sums or records measurements works on ``MetricStats`` alone and leaves their meaning to the task. What is said
here is true of a task with outputs [B, C], one for each class, and confusion counts; a task of another form
overrides what differs: ``fits``, ``class_counts``, ``strata`` and ``example_targets`` for targets [N, ...],
``transform`` where they move with the image, ``check_outputs``, ``logits`` and ``loss`` for other outputs,
``stats_shape``, ``observe`` and ``scores`` for other counts, ``misses`` and ``draw`` for pictures.

Targets of a batch are one tensor [B, ...]; lists of unequal length, such as boxes, are padded to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision import registry
from fedvision.data import targets as known_forms
from fedvision.data.image_counts import PerImage
from fedvision.data.targets import Targets
from fedvision.data.transforms import BatchTransform, Draws
from fedvision.errors import ConfigError, DataError, PluginError
from fedvision.tasks.drawings import Drawings
from fedvision.tasks.intervals import Interval
from fedvision.tasks.observed import Observed
from fedvision.tasks.stats import MetricStats, Shape, StatsForm
from fedvision.types import LossFn, MetricFn, PluginSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedvision.config import ExperimentConfig
    from fedvision.data.dataset import Dataset


class Task(ABC):
    """One kind of learning problem."""

    name: ClassVar[str]
    """By which losses and metrics name the tasks that they are for."""
    targets: ClassVar[str]
    """What is known of an image, in words that continue "the task needs"."""
    client_metric: ClassVar[str]
    """Key of the score by which clients are compared, as records have it."""
    example: ClassVar[str] = "image"
    """What ``MetricStats`` counts, such as pixels of images."""
    class_axis: ClassVar[int] = 1
    """Which number of a shape (T, R, S) is the number of classes."""
    row_width: ClassVar[int] = 0
    """W, the numbers of a row of ``MetricStats.rows``; 0 where counts in tables are all that is needed."""
    plugins_of: ClassVar[tuple[str, ...]] = ()
    """Other tasks whose losses, as ``loss`` applies them, and metrics, of the same tables, serve this one."""
    per_image: ClassVar[PerImage] = "one class"
    """What an image adds to ``class_counts``."""
    dense: ClassVar[bool] = False
    """Whether outputs are [B, C, H, W] and a class is decided for each pixel."""
    whole_image: ClassVar[bool] = False
    """Whether targets are of the image as a whole, so that they stay where it is flipped or cropped."""
    image_logits: ClassVar[bool] = True
    """Whether a network's outputs are rows of logits, one an image: what many strategies work on."""
    stacks: ClassVar[bool] = False
    """Whether clients can be trained together: ``collate`` and ``transform`` are those given here, and losses
    take outputs and targets of K clients, [K, B, ...]."""

    @abstractmethod
    def fits(self, targets: Targets) -> bool:
        """Return whether targets [N, ...] have the form that the task needs."""

    def class_counts(self, targets: Targets, num_classes: int) -> NDArray[np.int64]:
        """Return what of each class there is in targets [n, ...], int64 [C]: the numbers that losses get."""
        return known_forms.count(targets, num_classes)

    def strata(self, targets: Targets) -> NDArray[np.int64]:
        """Return the number, int64 [N], by which partition, long tail and holdout spread each image."""
        return known_forms.strata(targets)

    @abstractmethod
    def example_targets(self, num_classes: int, image_size: tuple[int, int]) -> torch.Tensor:
        """Return the targets [C, ...] of images (H, W) of which each is of one class alone."""

    def collate(self, images: NDArray[np.uint8], targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch as tensors on the CPU.

        Args:
            images: uint8 [B, H, W, channels], the caller's own.
            targets: [B, ...], as the data has them.

        Returns:
            Images uint8 [B, H, W, channels] and targets [B, ...], in the same order.
        """
        return torch.from_numpy(images), torch.from_numpy(targets)

    def transform(
        self, x: torch.Tensor, targets: torch.Tensor, drawn: Draws, transform: BatchTransform
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change a batch as its draws say: images, and targets that move with them.

        Args:
            x: float [B, channels, H, W], normalised.
            targets: [B, ...] on the same device.
            drawn: What was drawn for each image; empty where nothing is switched on.
            transform: ``apply`` changes images, ``apply_to_map`` a class for each pixel.
        """
        return transform.apply(x, drawn), targets

    def outputs(self, num_classes: int) -> int:
        """Return the outputs that a network's factory is asked for, as its ``num_classes``."""
        return num_classes

    def head(self, network: nn.Module, num_classes: int) -> nn.Module:
        """Return a network, as its factory built it, with the head that the task needs for C classes."""
        return network

    def check_outputs(self, outputs: Any, images: torch.Tensor, num_classes: int) -> str | None:
        """Return what is wrong with what a network makes of images; None where nothing is.

        Args:
            outputs: What it returned.
            images: float [B, channels, H, W].
            num_classes: C.

        Returns:
            The end of a sentence that begins with ``[model] use = ...:`` and says what to do.
        """
        return check_tensor(outputs, (len(images), num_classes), f"and {num_classes} classes")

    def logits(self, outputs: Any, num_classes: int) -> Any:
        """Return of a network's outputs what losses and measurements take; by default all of them."""
        return outputs

    def loss(self, criterion: LossFn, num_classes: int) -> LossFn:
        """Return ``loss(outputs, targets [B, ...]) -> [B]``, made of the experiment's loss of logits."""
        if type(self).logits is Task.logits:
            return criterion
        return lambda outputs, targets: criterion(self.logits(outputs, num_classes), targets)

    def measured(self, outputs: Any, num_classes: int, sharpness: float = 1.0) -> Any:
        """Return logits as they are measured: float32, times s where probabilities are those of s z."""
        logits: torch.Tensor = self.logits(outputs, num_classes).float()
        return logits * sharpness if sharpness != 1 else logits

    def decide(self, logits: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is predicted for B images, and the probabilities [B, C] of all classes.

        Raises:
            ConfigError: The task does not say.
        """
        raise ConfigError(
            f"the task {self.name!r} does not say what is predicted for an image; let its class override "
            "decide"
        )

    @property
    def decides(self) -> bool:
        """Whether the task says what is predicted for an image; one of one's own need not."""
        return type(self).decide is not Task.decide

    @property
    def one_class(self) -> bool:
        """Whether the task says of each image which one class it has, so that it can be right or wrong."""
        return self.decides and self.fits(np.zeros(1, np.int64))

    @property
    def draws(self) -> bool:
        """Whether the task says which images went worst, and draws them."""
        return type(self).misses is not Task.misses

    def shape_for(self, declared: Shape, num_classes: int) -> Shape:
        """Return the shape that counts must have: over C classes, or as many as declared where C = 0."""
        return self.stats_shape(num_classes or declared[self.class_axis])

    def stats_shape(self, num_classes: int) -> Shape:
        """Return the shape (T, R, S) of what is counted over C classes; by default of confusion counts."""
        return 1, num_classes, num_classes

    def stats_problem(self, stats: MetricStats, num_classes: int) -> str | None:
        """Return what is wrong with counts and rows of the right form that a client sent; None by default.

        Args:
            stats: What it says it counted, [T, R, S] and rows [M, W] by image.
            num_classes: C.

        Returns:
            A sentence such as ``its rows name class 12 of 10``.
        """
        return None

    def stats_form(self, num_classes: int) -> StatsForm:
        """Return what counts over C classes must look like, or over as many as declared where C = 0."""
        return StatsForm(
            shape_for=partial(self.shape_for, num_classes=num_classes),
            row_width=self.row_width,
            problem=lambda stats: self.stats_problem(stats, num_classes or stats.shape[self.class_axis]),
        )

    @abstractmethod
    def observe(self, logits: Any, targets: torch.Tensor, num_classes: int) -> Observed:
        """Measure a batch where the logits are, without a device synchronisation.

        Args:
            logits: Those of B images, as ``measured`` returns them.
            targets: [B, ...] on the same device; float64 ones on the CPU where the device has none.
            num_classes: C.

        Returns:
            The summed loss, the cells in which the tables of ``MetricStats`` count the n examples, which are
            images or pixels of them, and rows of ``row_width`` numbers where the task has such.
        """

    def check(self, config: ExperimentConfig, dataset: Dataset) -> None:
        """Check that the data and what the experiment names beside the task are for it.

        Raises:
            DataError: The data has targets of another form.
            ConfigError: Images would be moved and their targets would not.
            PluginError: The loss or a metric is for other tasks.
        """
        where = f"[task] use = {config.task.use!r}"
        for part in (dataset.train, dataset.test):
            if part is not None and not self.fits(part.labels):
                found = known_forms.form(part.labels)
                raise DataError(
                    f"{where} needs {self.targets}, and [data] use = {config.data.use!r} has {found}"
                )
        if config.transforms.size and not self.whole_image:
            raise ConfigError(
                f"transforms.size would resize images and not the targets of {where}; leave it out"
            )
        moved = [name for name in ("flip", "crop", "rotation", "cutout") if getattr(config.transforms, name)]
        if moved and not self.whole_image and type(self).transform is Task.transform:
            raise ConfigError(
                f"transforms.{moved[0]} would move images and not their targets: {where} does not say how; "
                "leave it out, or let the task's class override transform"
            )
        if config.transforms.mixup_partner == "balanced" and not known_forms.one_class(dataset.train.labels):
            raise ConfigError(
                "transforms.mixup_partner = 'balanced' goes by class and needs one class an image, and "
                f"{where} has other targets; leave it out"
            )
        registry.check_task("loss", config.loss.use, self.name, *self.plugins_of)
        for use in config.evaluation.metrics:
            registry.check_task("metric", use, self.name, *self.plugins_of)

    @abstractmethod
    def scores(
        self,
        stats: MetricStats,
        counts: Sequence[int] | NDArray[Any] | None = None,
        extra: Mapping[str, MetricFn] | None = None,
    ) -> dict[str, float]:
        """Return the figures that every run reports, shares of 1; NaN where no image contributes.

        Args:
            stats: Summed counts over C classes.
            counts: Training images of each class [C], from which rare classes follow; None where unknown.
            extra: Further metrics by name.
        """

    def intervals(
        self, stats: MetricStats, counts: Sequence[int] | NDArray[Any] | None = None
    ) -> dict[str, Interval]:
        """Return the 95 % confidence intervals of some of the scores, by their names; by default of none.

        Args:
            stats: Summed counts over C classes.
            counts: As for ``scores``.
        """
        return {}

    def by_class(self, stats: MetricStats) -> dict[str, NDArray[Any]]:
        """Return figures of each class [C] by name, as ``fedvision evaluate`` tells them; by default none."""
        return {}

    def examples(self, stats: MetricStats) -> int:
        """Return how many examples were measured, by which the sum of their losses is divided."""
        return stats.examples

    def misses(self, stats: MetricStats, targets: Targets, num_classes: int) -> NDArray[np.float64] | None:
        """Return how wrong each class went in each image: what the report shows images by; None by default.

        Args:
            stats: What was measured on N images.
            targets: [N, ...].
            num_classes: C.

        Returns:
            float64 [N, C]: 0 where nothing is wrong, or nothing is known; more is worse. A task that has this
            has ``draw`` as well.
        """
        return None

    def draw(
        self,
        images: NDArray[np.uint8],
        logits: Any,
        targets: Targets,
        of: NDArray[np.int64],
        names: Sequence[str],
    ) -> Drawings:
        """Return pictures of images with what was right and wrong in them.

        Args:
            images: uint8 [B, H, W, channels].
            logits: Theirs, as ``measured`` returns them.
            targets: [B, ...], as the data has them.
            of: int64 [B]: the class for which each is shown.
            names: Class names [C].

        Raises:
            ConfigError: The task does not say.
        """
        raise ConfigError(f"the task {self.name!r} does not draw; let its class override draw beside misses")

    def client_score(self, stats: MetricStats) -> float:
        """Return a client's score ``client_metric``."""
        return self.scores(stats)[self.client_metric]

    def to_record(self, stats: MetricStats) -> dict[str, Any]:
        """Return what a round's record keeps of the counts beside the scores, JSON values by key."""
        return {f"{self.example}s": self.examples(stats)}

    def client_spread(self, stats: Mapping[int, MetricStats]) -> dict[str, float]:
        """Describe how ``client_score`` differs over clients that have images, each client alike.

        Args:
            stats: Each client's own counts by its number.

        Returns:
            ``clients`` (how many have images), ``worst`` and ``best`` score with ``worst_client`` and
            ``best_client`` (the lowest number of several) and, where images are counted, those on which these
            two rest, ``worst_images`` and ``best_images``, ``mean``, ``std`` (of this population, divided by
            its size), ``p10`` (10th percentile, interpolated). All but ``clients`` are NaN where nobody has
            images.
        """
        images = {client: self.examples(one) for client, one in sorted(stats.items())}
        found = {client: self.client_score(stats[client]) for client, count in images.items() if count}
        measured = {client: score for client, score in found.items() if not np.isnan(score)}
        if not measured:
            worst_and_best = ("worst_client", "worst", "worst_images", "best_client", "best", "best_images")
            return {"clients": 0, **dict.fromkeys((*worst_and_best, "mean", "std", "p10"), float("nan"))}
        worst, best = min(measured, key=measured.__getitem__), max(measured, key=measured.__getitem__)
        values = np.array(list(measured.values()))
        by_images = self.example == "image"
        return {
            "clients": len(measured),
            "worst_client": worst,
            "worst": measured[worst],
            **({"worst_images": images[worst]} if by_images else {}),
            "best_client": best,
            "best": measured[best],
            **({"best_images": images[best]} if by_images else {}),
            "mean": float(values.mean()),
            "std": float(values.std()),
            "p10": float(np.percentile(values, 10)),
        }


def check_tensor(outputs: Any, shape: tuple[int, ...], of: str) -> str | None:
    """Return what is wrong with a network's outputs, which must be one finite tensor of a shape [B, ...].

    Args:
        outputs: What it returned.
        shape: The shape that it must have.
        of: For how many classes, to end "outputs for 2 images ...".
    """
    wanted = f"{list(shape)} logits for {shape[0]} images {of}"
    if not isinstance(outputs, torch.Tensor):
        return f"it returns a {type(outputs).__name__}, not {wanted}; let it return one tensor"
    if outputs.shape != shape:
        return (
            f"it returns {list(outputs.shape)}, not {wanted}; let its factory take num_classes and make the "
            "last layer as wide"
        )
    if not outputs.isfinite().all():
        return "its first logits are not finite; check how it is initialised"
    return None


def build_task(spec: PluginSpec) -> Task:
    """Return the task that an experiment's ``[task]`` names.

    Raises:
        PluginError: It is unknown, or its arguments do not fit.
    """
    task = registry.build("task", spec)
    if not isinstance(task, Task):
        raise PluginError(f"[task] use = {spec.use!r}: it is no fedvision.tasks.base.Task")
    return task
