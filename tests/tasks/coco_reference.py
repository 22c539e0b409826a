"""COCO's twelve numbers as pycocotools computes them, and random images of boxes on which to compare."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fedvision.data import boxes
from fedvision.tasks.detection_matching import Detections

NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


@dataclass
class Scene:
    """Images with annotated boxes and detections."""

    truths: list[np.ndarray]
    """[N] of float64 [m, 7] by the columns of ``fedvision.data.boxes``."""
    found: list[np.ndarray]
    """[N] of float64 [d, 6]: class, score (a float32), x, y, width, height."""

    def detections(self, first: int, last: int) -> Detections:
        """Return those of some images as one batch."""
        part = self.found[first:last]
        rows = np.concatenate([np.empty((0, 6)), *part])
        return Detections(
            images=np.repeat(np.arange(len(part)), [len(one) for one in part]),
            classes=rows[:, 0].astype(np.int64),
            boxes=rows[:, 2:],
            scores=rows[:, 1].astype(np.float32),
        )

    def targets(self, first: int, last: int) -> np.ndarray:
        """Return the boxes of some images as the data has them."""
        part = self.truths[first:last]
        return boxes.packed(part, [boxes.Placement(width=400, height=400)] * len(part))


def scene(
    seed: int,
    *,
    images: int,
    classes: int,
    most: int = 6,
    detections: int = 12,
    whole: bool = False,
    ties: bool = False,
    crowds: float = 0.2,
) -> Scene:
    """Draw images of which some are empty, with detections near boxes and beside them.

    Args:
        seed: Of every draw.
        images: N.
        classes: C; the last one may have detections and no box.
        most: Boxes an image at most.
        detections: An image at most.
        whole: Coordinates are whole numbers: some IoUs are equal, some boxes have the areas 32^2 and 96^2.
        ties: Scores are of five values.
        crowds: Share of the boxes that surround a crowd.
    """
    rng = np.random.default_rng(seed)
    sides = np.array([8, 16, 32, 64, 96, 128])
    truths, found = [], []
    for _ in range(images):
        own = np.zeros((rng.integers(0, most + 1), boxes.COLUMNS))
        own[:, boxes.CLASS] = rng.integers(0, max(1, classes - 1), len(own))
        size = rng.choice(sides, (len(own), 2)) * (1 if whole else rng.uniform(0.7, 1.4, (len(own), 2)))
        corner = 4 * rng.integers(0, 12, (len(own), 2)) + (0 if whole else rng.random((len(own), 2)))
        own[:, boxes.X : boxes.Y + 1], own[:, boxes.WIDTH : boxes.HEIGHT + 1] = corner, size
        # Objects are smaller than their boxes, so areas do not follow from sides.
        own[:, boxes.AREA] = size.prod(1) * rng.choice([1.0, 0.6], len(own))
        own[:, boxes.CROWD] = rng.random(len(own)) < crowds
        truths.append(own)
        found.append(_detected(rng, own, classes, rng.integers(0, detections + 1), whole, ties))
    return Scene(truths, found)


def _detected(
    rng: np.random.Generator, own: np.ndarray, classes: int, number: int, whole: bool, ties: bool
) -> np.ndarray:
    """Return detections [d, 6] of an image, most of them shifted boxes, some of the wrong class."""
    rows = np.zeros((number, 6))
    rows[:, 0] = rng.integers(0, classes, number)
    rows[:, 2:4], rows[:, 4:] = rng.integers(0, 100, (number, 2)), rng.choice([8, 32, 96, 130], (number, 2))
    if len(own):
        near = rng.random(number) < 0.8
        picked = own[rng.integers(0, len(own), number)]
        shift = rng.integers(-2, 3, (number, 4)) * [2, 2, 1, 0] if whole else rng.normal(0, 3, (number, 4))
        rows[near, 2:] = (picked[:, boxes.X : boxes.HEIGHT + 1] + shift)[near]
        rows[near, 4:] = np.maximum(rows[near, 4:], 1)
        right = near & (rng.random(number) < 0.8)
        rows[right, 0] = picked[right, boxes.CLASS]
    scores = rng.integers(0, 5, number) / 4 if ties else rng.random(number)
    rows[:, 1] = scores.astype(np.float32)
    return rows


def reference(scene: Scene, classes: int) -> dict[str, float]:
    """Return pycocotools' twelve numbers of all images together, its -1 as NaN."""
    stats = evaluated(scene, classes).stats
    return {
        name: float("nan") if value == -1 else float(value) for name, value in zip(NAMES, stats, strict=True)
    }


def evaluated(scene: Scene, classes: int) -> Any:
    """Return a ``COCOeval`` that has accumulated and summarised."""
    images = [{"id": number + 1} for number in range(len(scene.truths))]
    annotations, results = [], []
    for image, (own, rows) in enumerate(zip(scene.truths, scene.found, strict=True), start=1):
        for box in own.tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(box[boxes.CLASS]),
                    "bbox": box[boxes.X : boxes.HEIGHT + 1],
                    "area": box[boxes.AREA],
                    "iscrowd": int(box[boxes.CROWD]),
                }
            )
        for label, score, *box in rows.tolist():
            results.append({"image_id": image, "category_id": int(label), "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number} for number in range(classes)],
        }
        truth.createIndex()
        found = truth.loadRes(results) if results else COCO()
        measured = COCOeval(truth, found, "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return measured
