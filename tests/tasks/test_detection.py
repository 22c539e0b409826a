"""The task detection: what is counted, where boxes go, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedvision.config import TransformConfig
from fedvision.data import boxes
from fedvision.data.boxes import Placement, packed
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.transforms import prepare
from fedvision.errors import ConfigError, DataError, PluginError
from fedvision.experiment import Experiment
from fedvision.losses.weighting import cross_entropy
from fedvision.models.detection.outputs import Detections, DetectorOutput, Truth
from fedvision.tasks.detection import Detection, box_problem, curves_of, in_files, truth_of
from fedvision.tasks.stats import MetricStats
from fedvision.types import LossFn
from tests.detection_data import experiment, squares

TASK = Detection()
PLACES = [
    Placement(width=40, height=20, scale=(0.5, 0.5), shift=(0.0, 5.0)),
    Placement(width=20, height=20),
    Placement(width=20, height=20),
]
TARGETS = packed(
    [
        np.array([[1, 4, 2, 10, 6, 60, 0], [0, 20, 4, 8, 8, 64, 0], [1, 0, 0, 4, 4, 16, 1]], np.float64),
        np.array([[1, 1, 1, 5, 5, 25, 0]], np.float64),
        np.zeros((0, 7)),
    ],
    PLACES,
)


class Answers(DetectorOutput):
    """Says the same whatever the images."""

    form = "sigmoid"

    def __init__(self, found: list[tuple[int, int, float, list[float]]], images: int = 3) -> None:
        self.logits = torch.zeros(images, 4, 2)
        most = max([1, *(sum(one[0] == image for one in found) for image in range(images))])
        self.found = Detections(
            torch.zeros(images, most, 4),
            torch.zeros(images, most),
            torch.zeros(images, most, dtype=torch.int64),
            torch.zeros(images, dtype=torch.int64),
        )
        for image, label, score, corners in found:
            place = int(self.found.counts[image])
            self.found.corners[image, place] = torch.tensor(corners)
            self.found.scores[image, place], self.found.classes[image, place] = score, label
            self.found.counts[image] += 1

    def losses(self, truth: Truth, criterion: LossFn) -> torch.Tensor:
        return truth.present.sum(1).float()

    def detections(self) -> Detections:
        return self.found


def measured(answers: Answers, targets: boxes.Boxes = TARGETS) -> MetricStats:
    found = TASK.observe(TASK.measured(answers, 2), torch.from_numpy(targets), 2)
    assert found.rows is not None
    return MetricStats.from_cells(found.cells.numpy(), TASK.stats_shape(2), found.rows.numpy())


def test_the_form_of_its_targets() -> None:
    assert TASK.fits(TARGETS)
    assert not TASK.fits(np.zeros(3, np.int64))
    assert not TASK.fits(np.zeros((3, 4, 7), np.float32))
    assert not TASK.fits(np.zeros((3, 4, 6)))
    assert TASK.class_counts(TARGETS, 3).tolist() == [1, 2, 0]  # the crowd is none
    example = TASK.example_targets(3, (10, 20)).numpy()
    assert TASK.fits(example)
    assert TASK.class_counts(example, 3).tolist() == [1, 1, 1]
    assert example[2, 1].tolist() == [2, 5, 2.5, 10, 5, 50, 0]


def test_an_image_is_spread_by_the_rarest_class_it_shows() -> None:
    # Class 1 is in two images, class 0 in one; the third shows nothing and has the number of classes.
    assert TASK.strata(TARGETS).tolist() == [0, 1, 2]
    assert TASK.strata(TARGETS[2:]).tolist() == [1]


def test_objects_are_those_of_the_decoded_image_without_crowds() -> None:
    truth = truth_of(torch.from_numpy(TARGETS), torch.device("cpu"))
    assert truth.corners[0, :2].tolist() == [[2, 6, 7, 9], [10, 7, 14, 11]]
    assert truth.present.tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert truth.classes[0, :2].tolist() == [1, 0]


def test_detections_go_back_to_the_file() -> None:
    answers = Answers([(0, 1, 0.9, [2, 6, 7, 9]), (0, 0, 0.8, [15, 0, 25, 20]), (1, 0, 0.5, [0, 0, 20, 20])])
    found = in_files(answers.detections(), torch.from_numpy(TARGETS))
    assert found.images.tolist() == [0, 0, 1]
    # Twice as large and 5 decoded pixels up; cut at the file's borders of 40 x 20.
    assert found.boxes.tolist() == [[4, 2, 10, 6], [30, 0, 10, 20], [0, 0, 20, 20]]
    assert found.classes.tolist() == [1, 0, 0]


def test_scores_of_what_is_found() -> None:
    right = [(0, 1, 0.9, [2.0, 6, 7, 9]), (0, 0, 0.8, [10.0, 7, 14, 11]), (1, 1, 0.7, [1.0, 1, 6, 6])]
    stats = measured(Answers(right))
    scores = TASK.scores(stats, [100, 3])
    assert scores["ap"] == scores["ap50"] == scores["ar100"] == pytest.approx(1, abs=1e-12)
    assert np.isnan(scores["ap_large"])
    assert scores["head"] == pytest.approx(1)
    assert TASK.examples(stats) == 3
    assert stats.rows is not None
    # One more, wrong, of class 0 and with the highest score: its precision is 1/2 at every recall.
    wrong = measured(Answers([*right, (2, 0, 0.95, [0.0, 0, 9, 9])]))
    table = TASK.by_class(wrong)
    assert table["ap50"].tolist() == pytest.approx([0.5, 1.0])
    assert table["boxes"].tolist() == [1, 2]
    assert TASK.client_score(wrong) == pytest.approx(0.75)
    record = TASK.to_record(wrong)
    assert record["images"] == 3
    assert record["boxes"]["precision"] == [[0.5] * 21, [1.0] * 21]
    assert curves_of(wrong) is curves_of(wrong)


def test_the_measured_loss_is_summed_over_images() -> None:
    found = TASK.observe(Answers([]), torch.from_numpy(TARGETS), 2)
    assert found.loss.item() == 3


def test_counts_behind_masks_have_no_precision() -> None:
    stats = measured(Answers([(1, 1, 0.7, [1.0, 1, 6, 6])]))
    masked = MetricStats.from_tables(stats.tables(), masked=True)
    scores = TASK.scores(masked, [1, 1])
    assert all(np.isnan(value) for value in scores.values())
    assert TASK.to_record(masked)["boxes"]["boxes"] == [1, 2]
    assert TASK.stats_problem(masked, 2) is None


def test_rows_from_elsewhere_are_checked() -> None:
    stats = measured(Answers([(1, 1, 0.7, [1.0, 1, 6, 6])]))
    assert TASK.stats_problem(stats, 2) is None
    assert TASK.stats_problem(MetricStats.empty(TASK.stats_shape(2)), 2) is None
    assert stats.rows is not None
    rows = stats.rows.copy()
    rows[0, 1] = 7
    wrong = MetricStats(shape=stats.shape, cells=stats.cells, counts=stats.counts, rows=rows)
    assert "classes beyond the 2" in str(TASK.stats_problem(wrong, 2))
    assert TASK.shape_for((4, 3, 2), 0) == TASK.stats_shape(2) == (4, 3, 2)


def test_boxes_move_with_the_pixels() -> None:
    transform = prepare(TransformConfig(flip=True), 1)
    x = torch.zeros(3, 1, 20, 20)
    for image, (left, top, right, bottom) in ((0, (2, 6, 7, 9)), (1, (1, 1, 6, 6))):
        x[image, 0, top:bottom, left:right] = 1
    drawn = {"flip": torch.tensor([True, False, True])}
    moved, targets = TASK.transform(x, torch.from_numpy(TARGETS), drawn, transform)
    corners, present = boxes.placed(targets)
    assert present.sum(1).tolist() == [3, 1, 0]
    for image in (0, 1):
        rows, columns = (moved[image, 0] > 0).nonzero(as_tuple=True)
        painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert corners[image, 0].tolist() == [float(one) for one in painted]
    assert targets[0, 1:, boxes.CLASS].tolist() == [1, 0, 1]
    same = torch.from_numpy(TARGETS)
    assert TASK.transform(x, same, {}, transform) == (x, same)


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        (boxes.CLASS, 2.0, "a class that is none of the 2"),
        (boxes.CLASS, 0.5, "a class that is none of the 2"),
        (boxes.WIDTH, 0.0, "without width or height"),
        (boxes.X, np.nan, "not finite"),
    ],
)
def test_a_box_that_is_none_is_found(column: int, value: float, why: str) -> None:
    wrong = TARGETS.copy()
    wrong[1, 1, column] = value
    found = box_problem(wrong, 2)
    assert found is not None
    assert found[0] == 1
    assert why in found[1]
    wrong = TARGETS.copy()
    wrong[1, 2, column] = value  # beyond the boxes of the image
    assert box_problem(wrong, 2) is None


def of_a_wrong_class() -> Dataset:
    """Return images of which the fifth has a box of a class that there is not."""
    found = squares()
    labels = found.train.labels.copy()
    labels[4, 1, boxes.CLASS] = 3
    return Dataset(train=ImageSet(images=found.train.images, labels=labels), classes=found.classes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tables", "error", "why"),
    [
        ({"data": {"use": "digits"}}, DataError, "'detection' needs boxes .* and .* has one class an image"),
        ({"data": {"use": f"{__name__}:of_a_wrong_class"}}, DataError, "training image 4: a box of a class"),
        ({"task": {"use": "classification"}}, DataError, "needs one class an image"),
        ({"transforms": {"mixup": 0.2}}, ConfigError, "transforms.mixup blends images"),
        ({"transforms": {"size": 64}}, ConfigError, "transforms.size would resize images and not"),
        ({"loss": {"use": "focal"}}, PluginError, "is for classification, not for .*sigmoid-focal"),
        ({"loss": {"use": "seesaw"}}, ConfigError, r"\[loss\] is for a network with a softmax"),
        ({"training": {"sampler": "balanced"}}, ConfigError, "one class an image"),
        ({"model": {"use": "resnet8", "width": 4}}, ConfigError, "needs a detector; take 'fcos'"),
        ({"evaluation": {"metrics": ["kappa"]}}, PluginError, "is for classification"),
        ({"model": {"use": "fcos", "expand": "random-relu"}}, ConfigError, "expand|head"),
    ],
    ids=lambda one: str(one)[:60],
)
def test_what_it_cannot_have_is_refused_before_the_start(
    tables: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why) as caught:
        Experiment.build(experiment(**tables))
    assert "\n" not in str(caught.value)
    assert "Error" not in str(caught.value)


def test_cross_entropy_is_finite_for_classes_that_nobody_has() -> None:
    loss = TASK.loss(cross_entropy(torch.tensor([5, 0])), 2)
    assert loss(Answers([]), torch.from_numpy(TARGETS)).isfinite().all()  # type: ignore[arg-type]
