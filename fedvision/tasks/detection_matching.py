"""Which detections of an image find which boxes, as COCO decides: done where the images are.

Lin et al. 2014, "Microsoft COCO: Common Objects in Context", arXiv 1405.0312; rules and arithmetic as those
of pycocotools 2.0.11. In each image and class detections choose in order of falling score, ties in the order
in which they came. One takes the box with the highest IoU of those that reach the threshold and are not
taken; of equal ones the last. Boxes outside the range of areas, and crowds, are taken only where no other box
can be, and then the detection is ignored; a crowd can be taken again and again, and IoU with it is the share
of the detection that lies inside. A detection that finds nothing is ignored where its own area is outside
the range.

Shape letters: B images, D detections, M boxes at most, P pairs of an image and a class, G boxes of a pair at
most, C classes, A = 4 ranges of areas, T = 10 thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvision.data import boxes
from fedvision.tasks import detection_rows as form

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_AT_ONCE = 25_000
"""Boxes, padding included, whose detections choose together: their flags are 40 times as many bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """D boxes that were found in B images, in any order."""

    images: Ints
    """int64 [D]: the image's position in the batch."""
    classes: Ints
    """int64 [D]: from 0."""
    boxes: Floats
    """float64 [D, 4]: x, y, width, height in pixels of the image's file, as results in COCO's format."""
    scores: NDArray[np.float32]
    """float32 [D]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """Detections or annotated boxes, sorted by image and class."""

    keys: Ints
    """int64 [n], rising: image x C + class."""
    boxes: Floats
    """float64 [n, 4]: x, y, width, height."""
    counts: NDArray[np.bool_]
    """bool [n, A]: those within a range of areas, crowds in none."""
    crowds: NDArray[np.bool_]
    """bool [n]; of detections none."""


def match(found: Detections, targets: boxes.Boxes, num_classes: int) -> tuple[Ints, Ints]:
    """Return what a measurement keeps of the detections of a batch.

    Of each class in an image the ``detection_rows.MOST`` detections with the highest scores count. One whose
    score or box is not finite is none, so that a network that diverged finds nothing.

    Args:
        found: D detections.
        targets: float64 [B, 1 + M, 7] in the layout of ``fedvision.data.boxes``.
        num_classes: C.

    Returns:
        Rows int64 [M, 6] by ``detection_rows``, and the cells int64 [4 n] in which its tables count the n
        annotated boxes and images.

    Raises:
        ValueError: A detection is of an image or a class that does not exist.
    """
    for name, values, below in (
        ("images", found.images, len(targets)),
        ("classes", found.classes, num_classes),
    ):
        if ((values < 0) | (values >= below)).any():
            raise ValueError(f"detections are of {name} outside 0 to {below - 1}")
    detected, scores = _ranked(found, num_classes)
    truths = _truths(targets, num_classes)
    rank = np.arange(len(scores)) - np.searchsorted(detected.keys, detected.keys)
    shape = (len(scores), len(form.AREAS), len(form.THRESHOLDS))
    matched = np.zeros(shape, bool)
    ignored = np.repeat(~detected.counts[:, :, None], shape[2], axis=2)
    for pairs in _together(detected.keys, truths.keys):
        _choose(pairs, detected, truths, matched, ignored)
    columns = (
        detected.keys // num_classes,
        detected.keys % num_classes,
        rank,
        form.packed_scores(scores),
        form.packed_bits(matched),
        form.packed_bits(ignored),
    )
    return np.stack(columns, axis=1).astype(np.int64), _cells(truths, len(targets), num_classes)


def overlap(found: Floats, truths: Floats, crowds: NDArray[np.bool_]) -> Floats:
    """Return the IoU of boxes x, y, width, height; with a crowd the share of the detection that lies inside.

    Operations and their order are those of pycocotools' ``bbIou``, so that the bits are the same.

    Args:
        found: float64 [..., 4], detections.
        truths: float64 [..., 4], annotated boxes; the shapes are broadcast.
        crowds: bool [...], of the annotated boxes.
    """
    (x, y, width, height), (left, top, across, down) = np.moveaxis(found, -1, 0), np.moveaxis(truths, -1, 0)
    common_width = np.minimum(width + x, across + left) - np.maximum(x, left)
    common_height = np.minimum(height + y, down + top) - np.maximum(y, top)
    common = common_width * common_height
    area = width * height
    union = np.where(crowds, area, area + across * down - common)
    touching = (common_width > 0) & (common_height > 0) & (union > 0)
    shares: Floats = np.divide(common, union, out=np.zeros_like(union), where=touching)
    return shares


def _ranked(found: Detections, num_classes: int) -> tuple[_Side, NDArray[np.float32]]:
    """Return the detections that count, sorted by image, class and falling score, and their scores."""
    usable = np.isfinite(found.scores) & np.isfinite(found.boxes).all(axis=1)
    keys = (found.images * num_classes + found.classes)[usable]
    scores, places = found.scores[usable].astype(np.float32), found.boxes[usable].astype(np.float64)
    order = np.lexsort((-scores, keys))
    keys = keys[order]
    first = np.arange(len(keys)) - np.searchsorted(keys, keys) < form.MOST
    keys, order = keys[first], order[first]
    places = places[order]
    inside = form.in_range(places[:, 2] * places[:, 3])
    return _Side(keys=keys, boxes=places, counts=inside, crowds=np.zeros(len(keys), bool)), scores[order]


def _truths(targets: boxes.Boxes, num_classes: int) -> _Side:
    """Return the annotated boxes sorted by image and class, then as they came."""
    image, place = np.nonzero(boxes.present(targets))
    own = targets[image, place + 1]
    keys = image * num_classes + own[:, boxes.CLASS].astype(np.int64)
    order = np.argsort(keys, kind="stable")
    keys, own = keys[order], own[order]
    crowds = own[:, boxes.CROWD] != 0
    counts = form.in_range(own[:, boxes.AREA]) & ~crowds[:, None]
    return _Side(keys=keys, boxes=own[:, boxes.X : boxes.HEIGHT + 1], counts=counts, crowds=crowds)


def _cells(truths: _Side, images: int, num_classes: int) -> Ints:
    """Return the cells in which the tables count boxes and images, int64 [A n]."""
    row = np.concatenate([truths.keys % num_classes, np.full(images, num_classes)])
    counts = np.concatenate([truths.counts, np.ones((images, len(form.AREAS)), bool)])
    table = np.arange(len(form.AREAS)) * (num_classes + 1)
    cells: Ints = (table + row[:, None]) * 2 + np.where(counts, form.COUNTS, form.LEFT_OUT)
    return cells.T.ravel()


def _together(detected: Ints, truths: Ints) -> Iterator[Ints]:
    """Yield pairs that have detections and boxes: int64 [P, 4], first detection, how many, the same of boxes.

    Those that come together have about as many boxes each, and the ones with most detections come first.
    """
    pairs = np.intersect1d(detected, truths)
    columns = [
        edge
        for keys in (detected, truths)
        for first in [np.searchsorted(keys, pairs)]
        for edge in (first, np.searchsorted(keys, pairs, side="right") - first)
    ]
    table = np.stack(columns, axis=1).astype(np.int64)
    table = table[np.argsort(-table[:, 3], kind="stable")]
    start = 0
    while start < len(table):
        end = start + max(1, _AT_ONCE // int(table[start, 3]))
        part = table[start:end]
        yield part[np.argsort(-part[:, 1], kind="stable")]
        start = end


def _choose(
    pairs: Ints, detected: _Side, truths: _Side, matched: NDArray[np.bool_], ignored: NDArray[np.bool_]
) -> None:
    """Let the detections of pairs choose boxes, those of one rank at a time, and note what they found.

    Args:
        pairs: int64 [P, 4], as ``_together`` yields them.
        detected: All detections.
        truths: All annotated boxes.
        matched: bool [D, A, T], changed in place.
        ignored: bool [D, A, T], changed in place.
    """
    first, how_many, first_truth, truth_count = pairs.T
    most = int(truth_count.max())
    number = np.arange(most)[:, None]
    held = number < truth_count
    which = np.where(held, first_truth + number, first_truth)
    own, crowds, counts = truths.boxes[which], truths.crowds[which], truths.counts[which].swapaxes(1, 2)
    # Of the boxes that can be taken, [G, A, T, P], the one with the highest number is.
    free = np.broadcast_to(
        held[:, None, None], (most, len(form.AREAS), len(form.THRESHOLDS), len(pairs))
    ).copy()
    for rank in range(int(how_many[0])):
        having = int(np.searchsorted(-how_many, -rank, side="left"))
        iou = overlap(detected.boxes[first[:having] + rank], own[:, :having], crowds[:, :having])
        near = np.flatnonzero((iou * held[:, :having]).max(axis=0) >= form.THRESHOLDS[0])
        if not len(near):
            continue
        iou, again = iou[:, near], crowds[:, near]
        place = np.empty(iou.shape, np.int32)
        np.put_along_axis(place, np.argsort(iou, axis=0, kind="stable"), number.astype(np.int32), axis=0)
        value = place[:, None] + most * counts[:, :, near].astype(np.int32)
        can = free[..., near] & (iou[:, None, None] >= form.THRESHOLDS[:, None])
        offered = np.where(can, value[:, :, None], -1)
        best = offered.max(axis=0)
        took = best >= 0
        free[..., near] &= ~((offered == best) & took) | again[:, None, None]
        chooser = first[near] + rank
        matched[chooser] = np.moveaxis(took, 2, 0)
        ignored[chooser] = np.where(matched[chooser], np.moveaxis(best, 2, 0) < most, ignored[chooser])
