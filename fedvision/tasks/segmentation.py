"""Semantic segmentation: every pixel of an image has one class, and what is counted is pixels.

Targets are masks uint8 [N, H, W] (``data.masks``), outputs [B, C, H, W]. What is counted is which class was
taken for which, pixel by pixel, without those of value 255; the figures of ``tasks.pixels`` follow from that
table, summed over images and clients first.

Losses of classification serve as well: each pixel is an example, and an image's loss is the mean over its
pixels (Long, Shelhamer, Darrell 2015, "Fully Convolutional Networks for Semantic Segmentation", arXiv
1411.4038), with the pixels of each class as the class counts. Losses of whole masks are those of
``losses.segmentation``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedvision.data import masks
from fedvision.data.class_frequency_groups import tail_groups
from fedvision.data.image_counts import PerImage
from fedvision.data.masks import IGNORED
from fedvision.data.targets import PIXELS, Targets
from fedvision.data.transforms import BatchTransform, Draws
from fedvision.errors import ConfigError
from fedvision.losses.segmentation import takes_masks
from fedvision.ranges import check_range
from fedvision.tasks import mask_misses, pixels
from fedvision.tasks.base import Task, check_tensor
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.drawings import Drawings
from fedvision.tasks.metrics import mean_of, own_metric, ratio
from fedvision.tasks.observed import Observed
from fedvision.tasks.stats import MetricStats
from fedvision.types import LossFn, MetricFn

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig
    from fedvision.data.dataset import Dataset


class Segmentation(Task):
    """A class for each pixel.

    Args:
        background: Number of the class that is left out of mean IoU and mean Dice, and without which micro
            Dice is made; None is none.

    Raises:
        ValueError: ``background`` is out of range.
    """

    name: ClassVar[str] = "segmentation"
    targets: ClassVar[str] = PIXELS
    client_metric: ClassVar[str] = "mean_iou"
    example: ClassVar[str] = "pixel"
    dense: ClassVar[bool] = True
    row_width: ClassVar[int] = pixels.ROW
    per_image: ClassVar[PerImage] = "any number"
    plugins_of: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(self, *, background: int | None = None) -> None:
        if background is not None:
            check_range(at_least=0, below=masks.MOST_CLASSES, background=background)
        self.background = background

    def fits(self, targets: Targets) -> bool:
        """Return whether targets are masks, uint8 [N, H, W]."""
        return masks.is_masks(targets)

    def example_targets(self, num_classes: int, image_size: tuple[int, int]) -> torch.Tensor:
        """Return masks uint8 [C, H, W] of which each is of one class alone."""
        return torch.arange(num_classes, dtype=torch.uint8)[:, None, None].repeat(1, *image_size)

    def transform(
        self, x: torch.Tensor, targets: torch.Tensor, drawn: Draws, transform: BatchTransform
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Move images and masks alike; what comes in from outside, or is blanked, is ignored."""
        return transform.apply(x, drawn), transform.apply_to_map(targets, drawn, fill=IGNORED)

    def check_outputs(self, outputs: Any, images: torch.Tensor, num_classes: int) -> str | None:
        """Return what is wrong with outputs that are not [B, C, H, W]; None where nothing is."""
        if isinstance(outputs, torch.Tensor) and outputs.dim() != 4:
            return (
                f"it returns {list(outputs.shape)}, and segmentation needs logits of each pixel, "
                f"{[len(images), num_classes, *images.shape[2:]]}; take a network such as 'unet'"
            )
        shape = (len(images), num_classes, *images.shape[2:])
        return check_tensor(outputs, shape, f"and {num_classes} classes of a pixel")

    def loss(self, criterion: LossFn, num_classes: int) -> LossFn:
        """Return the loss of each image [B]: one of whole masks as it is, else the mean over its pixels."""
        return criterion if takes_masks(criterion) else per_pixel(criterion)

    def decide(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the class of each pixel [B, H, W], and the softmax [B, C, H, W]."""
        return logits.argmax(1), logits.softmax(1)

    def observe(self, logits: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Observed:
        """Return the summed cross-entropy, and true class x C + predicted class, of all pixels with a class.

        Rows are those of ``pixels.case_rows``. How many pixels and rows there are is only known on the
        device, which a GPU waits for.
        """
        labels, predicted, known = targets.long(), logits.argmax(1), targets != IGNORED
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        cells = (labels * num_classes + predicted)[known]
        return Observed(loss, cells, pixels.case_rows(labels, predicted, known, num_classes))

    def stats_problem(self, stats: MetricStats, num_classes: int) -> str | None:
        """Return what is wrong with rows that do not add up to the table; None where nothing is."""
        return pixels.rows_problem(ConfusionCounts.of(stats))

    def check(self, config: ExperimentConfig, dataset: Dataset) -> None:
        """Check that the data is for the task; see ``Task.check``.

        Raises:
            DataError: A mask has another size than its image, or holds what is no class.
            ConfigError: Images would be blended, resized or mirrored, or ``background`` is no class.
        """
        super().check(config, dataset)
        where, classes = f"[task] use = {config.task.use!r}", len(dataset.classes)
        if config.transforms.mixup:
            raise ConfigError(
                f"transforms.mixup blends images, and {where} has no form for blended masks; leave it out"
            )
        if config.model.mirrored:
            raise ConfigError(
                f"model.mirrored would average features of pixels that lie elsewhere, and {where} needs them "
                "in their place; leave it out, or set transforms.flip"
            )
        if self.background is not None and self.background >= classes:
            raise ConfigError(f"task.background = {self.background}: the classes are 0 to {classes - 1}")
        for part in (dataset.train, dataset.test):
            if part is not None:
                masks.check_sizes(part.images, part.labels, f"[data] use = {config.data.use!r}")
                masks.check_masks(part.labels, classes, f"[data] use = {config.data.use!r}", part.names)

    def scores(
        self,
        stats: MetricStats,
        counts: Sequence[int] | NDArray[Any] | None = None,
        extra: Mapping[str, MetricFn] | None = None,
    ) -> dict[str, float]:
        """Return mean IoU, mean Dice, case Dice, pixel accuracy, the mean IoU of rare classes, further ones.

        Means are over classes that truth or prediction has, without ``background``; where that is set, micro
        Dice is that of all other classes together. Case Dice is NaN where single images are not told of, as
        behind masks. A further metric gets the confusion matrix [C, C] of pixels.
        """
        confusion = ConfusionCounts.of(stats)
        found, measured = pixels.by_class(confusion), self._measured(confusion.num_classes)
        result = {
            "mean_iou": mean_of(found["iou"][measured]),
            "mean_dice": mean_of(found["dice"][measured]),
            "case_dice": mean_of(found["case_dice"][measured]),
            "pixel_accuracy": float(ratio(confusion.right_of.sum(), confusion.examples)),
        }
        if self.background is not None:
            result["micro_dice"] = pixels.micro_dice(confusion, measured)
        if counts is not None:
            for group, classes in tail_groups(counts).items():
                result[group] = mean_of(found["iou"][list(classes)])
        return result | {
            name: own_metric(name, metric, confusion.matrix()) for name, metric in (extra or {}).items()
        }

    def by_class(self, stats: MetricStats) -> dict[str, NDArray[Any]]:
        """Return pixels, IoU, Dice and what ``pixels.by_class`` has besides, of each class [C]."""
        return pixels.by_class(ConfusionCounts.of(stats))

    def misses(self, stats: MetricStats, targets: Targets, num_classes: int) -> NDArray[np.float64] | None:
        """Return 1 - Dice of each class in each image that has it, [N, C]; None without rows."""
        if stats.rows is None:
            return None
        rows = stats.rows.reshape(-1, pixels.ROW)
        return mask_misses.misses(rows, len(targets), self._measured(num_classes), num_classes)

    def draw(
        self,
        images: NDArray[np.uint8],
        logits: torch.Tensor,
        targets: Targets,
        of: NDArray[np.int64],
        names: Sequence[str],
    ) -> Drawings:
        """Return images beside their true and predicted masks; see ``Task.draw``."""
        return mask_misses.draw(images, logits.argmax(1).cpu().numpy(), targets, of, names)

    def client_score(self, stats: MetricStats) -> float:
        """Return the mean IoU."""
        confusion = ConfusionCounts.of(stats)
        return mean_of(pixels.iou(confusion)[self._measured(confusion.num_classes)])

    def to_record(self, stats: MetricStats) -> dict[str, Any]:
        """Return the measured pixels, and a table by class of their numbers, IoU and Dice."""
        columns = {name: values.tolist() for name, values in self.by_class(stats).items()}
        return {"pixels": stats.examples, "classes": columns}

    def _measured(self, num_classes: int) -> NDArray[np.int64]:
        """Return the classes of which means are made, int64 [C] or [C - 1]."""
        numbers = np.arange(num_classes)
        measured: NDArray[np.int64] = np.delete(numbers, [] if self.background is None else self.background)
        return measured


def per_pixel(criterion: LossFn) -> LossFn:
    """Return the loss of images [B] that is the mean of a loss of single examples over each image's pixels.

    Pixels of value 255 are left out; an image that has no others has the loss 0.

    Args:
        criterion: Logits [n, C] and classes [n] -> losses [n].
    """

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        known = (targets != IGNORED).flatten()
        # They take part with class 0 and count for nothing: to leave them out would need their number.
        labels = (
            targets.long().flatten().where(known, torch.zeros((), dtype=torch.int64, device=targets.device))
        )
        found = criterion(outputs.movedim(1, -1).reshape(-1, outputs.shape[1]), labels)
        each = found.where(known, torch.zeros_like(found)).view(len(targets), -1).sum(1)
        return each / known.view(len(targets), -1).sum(1).clamp(min=1)

    return loss
