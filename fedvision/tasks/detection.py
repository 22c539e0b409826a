"""Detection: an image shows any number of objects, each with a class and a box.

Targets are those of ``fedvision.data.boxes``; a network returns a
``models.detection.outputs.DetectorOutput``. What is measured are COCO's average precision and recall, of rows
of single detections that are put together over batches and clients (``detection_rows``,
``average_precision``): boxes found are brought back to the pixels of the image's file, where they were
annotated. What surrounds a crowd is no object to learn from, is in no class count, and is measured as COCO
does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from fedvision.data import boxes
from fedvision.data.class_frequency_groups import tail_groups
from fedvision.data.image_counts import PerImage
from fedvision.data.targets import Targets
from fedvision.data.transforms import BatchTransform, Draws
from fedvision.errors import ConfigError, DataError
from fedvision.losses.detection import form
from fedvision.losses.weighting import cross_entropy
from fedvision.models.detection.outputs import Detections, DetectorOutput, Truth
from fedvision.tasks import detection_misses, detection_rows
from fedvision.tasks.average_precision import Curves, accumulate
from fedvision.tasks.base import Task
from fedvision.tasks.detection_matching import Detections as Found
from fedvision.tasks.detection_matching import match
from fedvision.tasks.drawings import Drawings
from fedvision.tasks.metrics import mean_of, own_metric
from fedvision.tasks.observed import Observed
from fedvision.tasks.stats import MetricStats, Shape
from fedvision.types import LossFn, MetricFn

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig
    from fedvision.data.dataset import Dataset

_EVERY = 5
"""Of the 101 recalls of a precision-recall curve those that a record keeps: 0, 0.05, ..., 1."""
_curves: WeakKeyDictionary[MetricStats, Curves] = WeakKeyDictionary()


class Detection(Task):
    """Boxes with classes: targets float64 [N, 1 + M, 7]."""

    name: ClassVar[str] = "detection"
    targets: ClassVar[str] = "boxes (COCO JSON, VOC XML or YOLO text files)"
    client_metric: ClassVar[str] = "ap"
    row_width: ClassVar[int] = detection_rows.WIDTH
    per_image: ClassVar[PerImage] = "any number"
    image_logits: ClassVar[bool] = False

    def fits(self, targets: Targets) -> bool:
        """Return whether these are boxes, as ``fedvision.data.boxes`` packs them."""
        return targets.dtype == np.float64 and boxes.are_boxes(targets)

    def class_counts(self, targets: Targets, num_classes: int) -> NDArray[np.int64]:
        """Return the boxes of each class, int64 [C]."""
        counts: NDArray[np.int64] = boxes.class_table(targets, num_classes).sum(axis=0)
        return counts

    def strata(self, targets: Targets) -> NDArray[np.int64]:
        """Return the rarest class that each image shows, by the images that show it; C where it shows none.

        Of classes of which as many images show an object it is the lowest.
        """
        classes = 1 + int(targets[:, 1:, boxes.CLASS].max(initial=0))
        shown = boxes.class_table(targets, classes) > 0
        order = np.argsort(shown.sum(axis=0), kind="stable")
        ordered = shown[:, order]
        first = np.where(ordered.any(axis=1), ordered.argmax(axis=1), classes)
        found: NDArray[np.int64] = np.append(order, classes)[first].astype(np.int64)
        return found

    def example_targets(self, num_classes: int, image_size: tuple[int, int]) -> torch.Tensor:
        """Return the targets [C, 2, 7] of images with one object each, half as large, in the middle."""
        height, width = image_size
        place = boxes.Placement(width=width, height=height)
        box = [width / 4, height / 4, width / 2, height / 2, width * height / 4, 0]
        every = [np.array([[label, *box]], np.float64) for label in range(num_classes)]
        return torch.from_numpy(boxes.packed(every, [place] * num_classes))

    def transform(
        self, x: torch.Tensor, targets: torch.Tensor, drawn: Draws, transform: BatchTransform
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Move boxes with the pixels; those of which too little is left in the image are dropped."""
        if not drawn:
            return x, targets
        corners, present = boxes.placed(targets)
        moved, kept = transform.apply_to_boxes(corners, present, drawn, (x.shape[2], x.shape[3]))
        return transform.apply(x, drawn), boxes.with_corners(targets, moved, kept)

    def check(self, config: ExperimentConfig, dataset: Dataset) -> None:
        """Check as any task does, and that boxes are of classes that there are, finite and not empty.

        Raises:
            DataError: The data has targets of another form, or a box that is none.
            ConfigError: Images would be blended or resized and their boxes would not.
            PluginError: The loss or a metric is for other tasks.
        """
        super().check(config, dataset)
        if config.transforms.mixup:
            raise ConfigError(
                f"transforms.mixup blends images, and [task] use = {config.task.use!r} does not say how "
                "their boxes would be learned; leave it out"
            )
        for name, part in (("training", dataset.train), ("test", dataset.test)):
            if part is not None and (wrong := box_problem(part.labels, len(dataset.classes))):
                number, why = wrong
                of = part.names[number] if len(part.names) else f"{name} image {number}"
                raise DataError(f"[data] use = {config.data.use!r}: {of}: {why}")

    def check_outputs(self, outputs: Any, images: torch.Tensor, num_classes: int) -> str | None:
        """Return what is wrong with what a network makes of images; None where nothing is."""
        if not isinstance(outputs, DetectorOutput):
            return (
                f"it returns a {type(outputs).__name__}, and [task] use = 'detection' needs a detector; take "
                "'fcos', 'retinanet', 'ssdlite' or 'faster-rcnn', with it as the key backbone"
            )
        if len(outputs.logits) != len(images):
            return f"it returns what it says of {len(outputs.logits)} images for {len(images)}"
        if not outputs.logits.isfinite().all():
            return "its first logits are not finite; check how it is initialised"
        return None

    def loss(self, criterion: LossFn, num_classes: int) -> LossFn:
        """Return the loss of each image [B]: its classes by the criterion, and its boxes."""

        def loss(outputs: DetectorOutput, targets: torch.Tensor) -> torch.Tensor:
            truth = truth_of(targets, outputs.logits.device)
            return outputs.losses(truth, form(criterion, outputs.form))

        return loss  # type: ignore[return-value]

    def measured(self, outputs: Any, num_classes: int, sharpness: float = 1.0) -> Any:
        """Return the outputs, of which ``observe`` takes losses and detections."""
        return outputs

    def decide(self, logits: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Refuse to name a class of an image.

        Raises:
            ConfigError: Always; ``fedvision.detecting.detect`` returns boxes.
        """
        raise ConfigError(
            "the task 'detection' finds boxes and names no class of an image; `fedvision predict` and "
            "fedvision.detecting.detect find them, and this knows classes alone"
        )

    @property
    def decides(self) -> bool:
        """Whether the task says what is predicted for an image as a whole: not of boxes."""
        return False

    def stats_shape(self, num_classes: int) -> Shape:
        """Return the shape of counts of boxes and images, [4, C + 1, 2]."""
        return len(detection_rows.AREAS), num_classes + 1, 2

    def shape_for(self, declared: Shape, num_classes: int) -> Shape:
        """Return the shape that counts must have: over C classes, or as many as declared where C = 0."""
        return self.stats_shape(num_classes or declared[self.class_axis] - 1)

    def stats_problem(self, stats: MetricStats, num_classes: int) -> str | None:
        """Return what is wrong with counts and rows that came from elsewhere; None where nothing is."""
        if stats.rows is None:
            return None
        return detection_rows.rows_problem(rows_of(stats), stats.tables())

    def examples(self, stats: MetricStats) -> int:
        """Return the images that were measured."""
        return detection_rows.images_of(stats.tables())

    def observe(self, logits: DetectorOutput, targets: torch.Tensor, num_classes: int) -> Observed:
        """Measure a batch.

        Returns:
            The sum of the images' losses with cross-entropy for the classes, in nats, and of their boxes;
            the cells of boxes and images; a row of each detection.
        """
        device = logits.logits.device
        plain = cross_entropy(torch.ones(num_classes, device=device))
        loss = logits.losses(truth_of(targets, device), form(plain, logits.form)).sum()
        rows, cells = match(in_files(logits.detections(), targets), targets.cpu().numpy(), num_classes)
        return Observed(loss, *(torch.from_numpy(one).to(device) for one in (cells, rows)))

    def scores(
        self,
        stats: MetricStats,
        counts: Sequence[int] | NDArray[Any] | None = None,
        extra: Mapping[str, MetricFn] | None = None,
    ) -> dict[str, float]:
        """Return COCO's twelve numbers, then the mean AP of rare classes, then further ones.

        NaN where no box is to be found, and everywhere where rows are not told (behind masks). A further
        metric gets the tables [4, C + 1, 2].
        """
        curves = curves_of(stats)
        result = curves.summary()
        if counts is not None:
            own = np.asarray(curves.by_class()["ap"], np.float64)
            for group, classes in tail_groups(counts).items():
                result[group] = mean_of(own[list(classes)])
        return result | {
            name: own_metric(name, metric, stats.tables()) for name, metric in (extra or {}).items()
        }

    def by_class(self, stats: MetricStats) -> dict[str, NDArray[Any]]:
        """Return the boxes, AP, AP at IoU 0.5 and 0.75 and average recall of each class [C]."""
        return dict(curves_of(stats).by_class())

    def misses(self, stats: MetricStats, targets: Targets, num_classes: int) -> NDArray[np.float64] | None:
        """Return the objects that were missed plus the scores of false boxes, [N, C]; None without rows."""
        if stats.rows is None:
            return None
        return detection_misses.misses(rows_of(stats), targets, num_classes)

    def draw(
        self,
        images: NDArray[np.uint8],
        logits: DetectorOutput,
        targets: Targets,
        of: NDArray[np.int64],
        names: Sequence[str],
    ) -> Drawings:
        """Return images with annotated and found boxes; see ``Task.draw``."""
        return detection_misses.draw(
            images, in_files(logits.detections(), torch.from_numpy(targets)), targets
        )

    def client_score(self, stats: MetricStats) -> float:
        """Return the AP over a client's images alone."""
        return curves_of(stats).summary()["ap"]

    def to_record(self, stats: MetricStats) -> dict[str, Any]:
        """Return the images, a table by class, and of each class the precision at 21 recalls at IoU 0.5."""
        curves = curves_of(stats)
        columns = {name: values.tolist() for name, values in curves.by_class().items()}
        points = [curves.points(label)[::_EVERY].round(4).tolist() for label in range(len(curves.boxes))]
        return {"images": self.examples(stats), "boxes": columns | {"precision": points}}


def truth_of(targets: torch.Tensor, device: torch.device) -> Truth:
    """Return the objects of targets float64 [B, 1 + M, 7] on a device, crowds left out."""
    corners, present = boxes.placed(targets)
    counted = present & (targets[:, 1:, boxes.CROWD] == 0)
    found = corners.float(), targets[:, 1:, boxes.CLASS].long(), counted
    return Truth(*(tensor.to(device, non_blocking=True) for tensor in found))


def in_files(found: Detections, targets: torch.Tensor) -> Found:
    """Return detections in the pixels of the images' files, cut at their borders.

    Args:
        found: Those of B images, in pixels of the decoded ones.
        targets: float64 [B, 1 + M, 7], whose first rows say how the one became the other.
    """
    image, place = (one.cpu().numpy() for one in _filled(found).nonzero(as_tuple=True))
    head = targets[:, 0].cpu().numpy()[image]
    scale, shift = head[:, boxes.X_SCALE : boxes.Y_SCALE + 1], head[:, boxes.X_SHIFT : boxes.Y_SHIFT + 1]
    corners = found.corners.cpu().numpy()[image, place].astype(np.float64)
    corners = (corners - np.tile(shift, 2)) / np.tile(scale, 2)
    size = np.tile(head[:, boxes.IMAGE_WIDTH : boxes.IMAGE_HEIGHT + 1], 2)
    corners = np.clip(corners, 0, size)
    return Found(
        images=image,
        classes=found.classes.cpu().numpy()[image, place],
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        scores=found.scores.cpu().numpy()[image, place],
    )


def _filled(found: Detections) -> torch.Tensor:
    places = torch.arange(found.scores.shape[1], device=found.counts.device)
    return places < found.counts[:, None]


def curves_of(stats: MetricStats) -> Curves:
    """Return the curves of a measurement, which are made once; all NaN where its rows are not told."""
    if stats not in _curves:
        found = accumulate(stats.tables(), rows_of(stats))
        if stats.rows is None:
            found.precision.fill(np.nan)
            found.recall.fill(np.nan)
        _curves[stats] = found
    return _curves[stats]


def rows_of(stats: MetricStats) -> NDArray[np.int64]:
    """Return the rows of a measurement, int64 [M, 6]; none where they are not told."""
    there = stats.rows is not None and stats.rows.size
    return stats.rows if there and stats.rows is not None else np.zeros((0, detection_rows.WIDTH), np.int64)


def box_problem(targets: boxes.Boxes, num_classes: int) -> tuple[int, str] | None:
    """Return which image [N] has a box that is none, and why; None where all are sound."""
    present, own = boxes.present(targets), targets[:, 1:]
    classes = own[..., boxes.CLASS]
    sizes = own[..., boxes.WIDTH : boxes.HEIGHT + 1]
    faults = (
        (~np.isfinite(own).all(axis=2), "a box with a number that is not finite"),
        (
            (classes < 0) | (classes >= num_classes) | (classes % 1 != 0),
            f"a box of a class that is none of the {num_classes} from 0",
        ),
        ((sizes <= 0).any(axis=2), "a box without width or height"),
    )
    for wrong, why in faults:
        if (wrong := wrong & present).any():
            return int(np.flatnonzero(wrong.any(axis=1))[0]), why
    return None
