"""COCO's average precision and recall of detections, from rows and tables pooled over clients.

Rows of clients are put one after another in canonical order (client, then image), sorted stably by falling
score, and integrated once: so the numbers are those of all images in one place, to the bit. AP is no sum over
images, and a mean of clients' APs is another number, which says little: a client that lacks a class has
no AP of it, and false positives of one client push down the precision of another one's matches.

Lin et al. 2014, "Microsoft COCO: Common Objects in Context", arXiv 1405.0312; steps and arithmetic as those
of pycocotools 2.0.11 (``COCOeval.accumulate`` and ``summarize``), whose -1 for what is undefined is NaN here.

Shape letters: M detections, C classes, T = 10 thresholds, R = 101 recalls, A = 4 ranges of areas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvision.tasks import detection_rows as form

Floats = NDArray[np.float64]
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
"""At which recalls the precision is averaged [R]."""
LIMITS = (1, 10, 100)
"""Detections of a class in an image that count, for average recall."""
_AREAS = list(form.AREAS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """Precision and recall of each class, of which every number of COCO's is a mean."""

    precision: Floats
    """float64 [T, R, C, A]: the highest precision at this recall or above; 0 where the recall is not reached,
    NaN of a class without a box to find."""
    recall: Floats
    """float64 [T, C, A, 3]: the share of boxes that are found, by ``LIMITS``; NaN as above."""
    boxes: NDArray[np.int64]
    """int64 [C]: boxes to find, of any size."""

    def summary(self) -> dict[str, float]:
        """Return COCO's twelve numbers; NaN where no class has a box to find in the range of areas.

        ``ap`` is the mean over thresholds, recalls and classes, ``ap50`` and ``ap75`` those of one threshold,
        ``ap_small``, ``ap_medium`` and ``ap_large`` those of a range of areas; ``ar1``, ``ar10`` and
        ``ar100`` are the mean over thresholds and classes of the recall with so many detections of a class in
        an image at most, ``ar_small``, ``ar_medium`` and ``ar_large`` those with 100 in a range of areas.
        """
        every = self.precision[..., 0]
        sizes = [(name, number) for number, name in enumerate(_AREAS) if number]
        return {
            "ap": _mean(every),
            "ap50": _mean(every[threshold_index(0.5)]),
            "ap75": _mean(every[threshold_index(0.75)]),
            **{f"ap_{name}": _mean(self.precision[..., area]) for name, area in sizes},
            **{f"ar{limit}": _mean(self.recall[:, :, 0, place]) for place, limit in enumerate(LIMITS)},
            **{f"ar_{name}": _mean(self.recall[:, :, area, -1]) for name, area in sizes},
        }

    def by_class(self) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
        """Return ``boxes`` to find, ``ap``, ``ap50``, ``ap75`` and ``ar100`` of each class [C].

        NaN of a class without boxes to find. The mean of the others' AP is the summary's up to rounding.
        """
        every = self.precision[..., 0]
        return {
            "boxes": self.boxes,
            "ap": every.mean(axis=(0, 1)),
            "ap50": every[threshold_index(0.5)].mean(axis=0),
            "ap75": every[threshold_index(0.75)].mean(axis=0),
            "ar100": self.recall[:, :, 0, -1].mean(axis=0),
        }

    def points(self, label: int, threshold: float = 0.5) -> Floats:
        """Return the precision [R] of a class at ``RECALLS``, of boxes of any size.

        Args:
            label: The class from 0.
            threshold: An IoU of ``detection_rows.THRESHOLDS``.
        """
        return self.precision[threshold_index(threshold), :, label, 0]


def threshold_index(threshold: float) -> int:
    """Return the place of an IoU among the thresholds.

    Raises:
        ValueError: It is none of them.
    """
    place = int(np.abs(form.THRESHOLDS - threshold).argmin())
    if abs(form.THRESHOLDS[place] - threshold) > 1e-9:
        raise ValueError(f"{threshold} is none of the thresholds 0.5, 0.55, ..., 0.95")
    return place


def accumulate(tables: NDArray[np.int64], rows: NDArray[np.int64]) -> Curves:
    """Return the curves of what was measured on all images.

    Args:
        tables: int64 [A, C + 1, 2] by ``detection_rows``, summed.
        rows: int64 [M, 6], one measurement after another, in the order of clients and images by which ties of
            scores are broken.
    """
    counted = tables[:, :-1, form.COUNTS].T
    classes = len(counted)
    precision = np.full((len(form.THRESHOLDS), len(RECALLS), classes, len(_AREAS)), np.nan)
    recall = np.full((len(form.THRESHOLDS), classes, len(_AREAS), len(LIMITS)), np.nan)
    scores = form.unpacked_scores(rows[:, form.SCORE])
    rows = rows[np.lexsort((-scores, rows[:, form.CLASS]))]
    edges = np.searchsorted(rows[:, form.CLASS], np.arange(classes + 1))
    for label in np.flatnonzero(counted.any(axis=1)):
        own = rows[edges[label] : edges[label + 1]]
        matched, ignored = (form.unpacked_bits(own[:, column]) for column in (form.MATCHED, form.IGNORED))
        for area in np.flatnonzero(counted[label]):
            boxes = int(counted[label, area])
            counts = ~ignored[:, area].T
            right, false = matched[:, area].T & counts, ~matched[:, area].T & counts
            precision[:, :, label, area] = _precision(right, false, boxes)
            for place, limit in enumerate(LIMITS):
                found = right[:, own[:, form.RANK] < limit].sum(axis=1)
                recall[:, label, area, place] = found / boxes
    return Curves(precision=precision, recall=recall, boxes=form.boxes_of(tables))


def _precision(right: NDArray[np.bool_], false: NDArray[np.bool_], boxes: int) -> Floats:
    """Return the precision at each recall, float64 [T, R].

    Args:
        right: bool [T, M], by falling score: detections that found one of the boxes.
        false: bool [T, M]: those that found nothing; the others are left out.
        boxes: How many there are to find, at least one.
    """
    true_positives = right.cumsum(axis=1).astype(np.float64)
    named = false.cumsum(axis=1).astype(np.float64) + true_positives
    shares = true_positives / (named + np.spacing(1))
    highest = np.maximum.accumulate(shares[:, ::-1], axis=1)[:, ::-1]
    # One more place of 0 for recalls that are not reached.
    highest = np.concatenate([highest, np.zeros((len(highest), 1))], axis=1)
    places = [np.searchsorted(recalls, RECALLS, side="left") for recalls in true_positives / boxes]
    return np.take_along_axis(highest, np.array(places), axis=1)


def _mean(values: Floats) -> float:
    """Return the mean of the numbers that are not NaN, in the order in which pycocotools adds them."""
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if len(defined) else float("nan")
