"""Which objects of an image a detector missed and which of its boxes are false: counted, and drawn.

Both are those of a person who uses the detector as ``fedvision predict`` does: boxes of a score of ``SHOWN``
or more are looked at, and by COCO's rules of matching (``detection_matching``) at an IoU of 0.5 one finds an
object or is false. Within a crowd it is neither.

Shape letters: N or B images, C classes, D detections, M boxes of an image at most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvision.data import boxes
from fedvision.formatting import plural
from fedvision.tasks import detection_rows as form
from fedvision.tasks import drawings
from fedvision.tasks.detection_matching import Detections, Floats, Ints, overlap
from fedvision.tasks.drawings import NEITHER, RIGHT, WRONG, Drawings

SHOWN = 0.3
"""The least score of a box that is looked at."""
_IOU = form.THRESHOLDS[0]
FALSE_DRAWN = 5
"""False boxes of an image that are drawn at most: a network that has learned little makes so many that
nothing can be seen."""
_ABOUT = (
    "Test images with the most missed objects and false boxes of the class named above them, the worst "
    f"first; boxes with a score of {SHOWN} or more are the model's, and one finds an object of its class "
    f"where their IoU is {_IOU} or more."
)


def misses(rows: NDArray[np.int64], targets: boxes.Boxes, num_classes: int) -> Floats:
    """Return how wrong each class went in each image: objects missed plus the scores of false boxes.

    Args:
        rows: int64 [n, 6] by ``detection_rows``, of all N images.
        targets: float64 [N, 1 + M, 7].
        num_classes: C.

    Returns:
        float64 [N, C].
    """
    scores = form.unpacked_scores(rows[:, form.SCORE])
    looked = scores >= SHOWN
    rows, scores = rows[looked], scores[looked]
    # The lowest bit is that of objects of any size at the lowest IoU.
    matched, ignored = ((rows[:, column] & 1).astype(bool) for column in (form.MATCHED, form.IGNORED))
    cells, size = rows[:, form.IMAGE] * num_classes + rows[:, form.CLASS], len(targets) * num_classes
    found = np.bincount(cells[matched & ~ignored], minlength=size)
    false = ~matched & ~ignored
    surplus = np.bincount(cells[false], weights=scores[false].astype(np.float64), minlength=size)
    missed = boxes.class_table(targets, num_classes).ravel() - found
    wrong: Floats = (missed + surplus).reshape(len(targets), num_classes).astype(np.float64)
    return wrong


def draw(images: NDArray[np.uint8], found: Detections, targets: boxes.Boxes) -> Drawings:
    """Return pictures of images with the boxes that were annotated and those that were found.

    Args:
        images: uint8 [B, H, W, channels].
        found: What was found in them, in pixels of their files.
        targets: float64 [B, 1 + M, 7].
    """
    usable = np.isfinite(found.boxes).all(axis=1) & (found.scores >= SHOWN)
    drawn, captions = [np.empty((0, drawings.COLUMNS))], []
    for number, row in enumerate(targets):
        truths = row[1 : 1 + int(row[0, boxes.COUNT])]
        own = np.flatnonzero(usable & (found.images == number))
        own = own[np.argsort(-found.scores[own], kind="stable")]
        of_found, of_truths = verdicts(found.classes[own], found.boxes[own], truths)
        false = int((of_found == WRONG).sum())
        kept = (of_found != WRONG) | (np.cumsum(of_found == WRONG) <= FALSE_DRAWN)
        own, of_found = own[kept], of_found[kept]
        drawn.append(_boxes(number, row, found.classes[own], found.scores[own], of_found, found.boxes[own]))
        labels, places = truths[:, boxes.CLASS], truths[:, boxes.X : boxes.HEIGHT + 1]
        drawn.append(_boxes(number, row, labels, np.full(len(truths), np.nan), of_truths, places))
        missed, objects = (of_truths == WRONG).sum(), (of_truths != NEITHER).sum()
        surest = f", the surest {FALSE_DRAWN} drawn" if false > FALSE_DRAWN else ""
        captions.append(
            f"{missed} of {plural(int(objects), 'object')} missed, {plural(false, 'false box', 'es')}{surest}"
        )
    together = np.concatenate(drawn)
    together[:, drawings.LEFT :] /= drawings.step(*images.shape[1:3])
    return Drawings(
        panels=drawings.photos(images)[:, None],
        titles=("image",),
        captions=captions,
        about=_ABOUT,
        boxes=together,
    )


def verdicts(labels: Ints, found: Floats, truths: Floats) -> tuple[Ints, Ints]:
    """Return what is to be said of the detections and of the annotated boxes of an image.

    In order of score, ties as they came, each takes the box of its class with the highest IoU of those that
    nobody has taken, of equal ones the last; where there is none it may lie in a crowd.

    Args:
        labels: int64 [D], by falling score.
        found: float64 [D, 4]: x, y, width, height in pixels of the file.
        truths: float64 [M, 7] by the columns of ``data.boxes``.

    Returns:
        Verdicts of ``tasks.drawings``, int64 [D] and [M].
    """
    crowds = truths[:, boxes.CROWD] != 0
    of_found, of_truths = np.full(len(found), WRONG), np.where(crowds, NEITHER, WRONG)
    iou = overlap(found[:, None], truths[None, :, boxes.X : boxes.HEIGHT + 1], crowds[None])
    near = (iou >= _IOU) & (labels[:, None] == truths[:, boxes.CLASS])
    for number, (own, shares) in enumerate(zip(near, iou, strict=True)):
        free = np.flatnonzero(own & (of_truths == WRONG))
        if len(free):
            best = free[::-1][shares[free[::-1]].argmax()]
            of_found[number] = of_truths[best] = RIGHT
        elif (own & crowds).any():
            of_found[number] = NEITHER
    return of_found, of_truths


def _boxes(
    number: int,
    row: Floats,
    labels: NDArray[np.generic],
    scores: NDArray[np.generic],
    said: Ints,
    own: Floats,
) -> Floats:
    """Return boxes x, y, width, height of a file as ``Drawings`` has them, in pixels of the decoded image.

    Args:
        number: The image's position.
        row: float64 [1 + M, 7]: its targets, whose first row says how the one became the other.
        labels: Classes [n].
        scores: Scores [n].
        said: Verdicts [n].
        own: float64 [n, 4].
    """
    scale, shift = row[0, boxes.X_SCALE : boxes.Y_SCALE + 1], row[0, boxes.X_SHIFT : boxes.Y_SHIFT + 1]
    corners = np.concatenate([own[:, :2], own[:, :2] + own[:, 2:]], axis=1)
    facts = np.stack([np.full(len(own), number), labels, scores, said], axis=1).astype(np.float64)
    together: Floats = np.concatenate([facts, corners * np.tile(scale, 2) + np.tile(shift, 2)], axis=1)
    return together
