"""Composed scenes with a long tail, whose boxes, masks and labels are known exactly.

The scenes are composed, not photographed: each shows one to five objects of Fashion-MNIST (Xiao, Rasul,
Vollgraf 2017, arXiv 1708.07747), cut out by their own pixels (``silhouette``) and pasted as they are, gray,
on an enlarged part of a photograph of CIFAR-10 (Krizhevsky 2009). They are for comparing methods with each
other under a long tail that is made by construction; figures on them say nothing of photographs.

Training scenes draw the classes of their objects with odds ``imbalance ** (-c / (C - 1))`` for class c (the
long tail of Cui et al. 2019, arXiv 1901.05555, for objects), test scenes draw all classes alike. An object's
longer side is 1/6 to 5/12 of the canvas (16 to 40 of 96 pixels), it lies whole on the canvas, and later ones
hide at most 30% of it. Boxes, areas, masks and labels are of the pixels that are seen.

Training scenes rest on the data sets' training images, test scenes on their test images. With ``validation``
the test scenes' place is taken by scenes, balanced as well, of that share of the training images, which then
no training scene shows. A scene depends on the seed, its own number and these settings alone, so fewer scenes
are the first of more. As a plug-in of an experiment in this folder, or with the folder on Python's path::

    data = { use = "scenes:detection", scenes = 2000, imbalance = 50, seed = 0 }

Needs Fashion-MNIST and CIFAR-10 where ``environments`` finds them.

Shape letters: N scenes, S side of the canvas, C classes, m boxes of a scene.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))  # a script finds what stands in its own folder alone

import environments

from fedvision import registry, seeding
from fedvision.data.boxes import COLUMNS, Placement, packed
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.errors import DataError
from fedvision.ranges import check_range
from fedvision.types import PluginSpec

MOST = 5
"""Objects of a scene at most."""
SMALLEST, LARGEST = 1 / 6, 5 / 12
"""An object's longer side, in sides of the canvas."""
HIDDEN = 0.3
"""Share of an object's pixels that later ones may hide."""
TRIES = 20
"""Places that are tried for an object, which is left out if it hides too much at each of them."""
FAINT = 16
"""Gray from which on a single pixel is part of an object."""
PART = (16, 32)
"""Side of the part of a photograph that becomes a background, in its pixels."""
Pixels = NDArray[np.uint8]
Box = tuple[float, ...]
"""Class, x, y, width, height, area, crowd, as the columns of ``fedvision.data.boxes``."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What scenes are composed of."""

    objects: Pixels
    """[n, h, w]: gray images of single objects, 0 where there is none."""
    labels: NDArray[np.int64]
    """[n], from 0; every class has an image."""
    photographs: Pixels
    """[p, h, w, 3]."""


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """N scenes and all that is known of them."""

    images: Pixels
    """[N, S, S, 3]."""
    masks: Pixels
    """[N, S, S]: 0 is background, c + 1 class c."""
    boxes: list[NDArray[np.float64]]
    """[N] of [m, 7], as ``fedvision.data.boxes.packed`` takes them."""


def detection(
    *, scenes: int = 2000, imbalance: float = 50.0, seed: int = 0, size: int = 96, validation: float = 0.0
) -> Dataset:
    """Return scenes with the boxes of their objects, ``fedvision.data.boxes.packed``.

    Args:
        scenes: Training scenes; half as many are measured on.
        imbalance: How many times as often the first class is drawn for a training scene as the last one.
        seed: Of the scenes; another one gives other scenes of the same images.
        size: S, pixels.
        validation: Share of the training images of which scenes take the test scenes' place.
    """

    def targets(made: Scenes, classes: int) -> NDArray[np.float64]:
        return packed(made.boxes, [Placement(width=size, height=size)] * len(made.boxes))

    return _dataset(targets, scenes, imbalance, seed, size, validation)


def segmentation(
    *, scenes: int = 2000, imbalance: float = 50.0, seed: int = 0, size: int = 96, validation: float = 0.0
) -> Dataset:
    """Return scenes with a class for each pixel, uint8 [N, S, S], of which 0 is "background".

    Args:
        scenes: As for ``detection``, with the four that follow.
        imbalance: The same.
        seed: The same.
        size: The same.
        validation: The same.
    """
    made = _dataset(lambda made, classes: made.masks, scenes, imbalance, seed, size, validation)
    return Dataset(train=made.train, test=made.test, classes=("background", *made.classes))


def multi_label(
    *, scenes: int = 2000, imbalance: float = 50.0, seed: int = 0, size: int = 96, validation: float = 0.0
) -> Dataset:
    """Return scenes with the classes that each shows, uint8 [N, C].

    Args:
        scenes: As for ``detection``, with the four that follow.
        imbalance: The same.
        seed: The same.
        size: The same.
        validation: The same.
    """
    return _dataset(shown, scenes, imbalance, seed, size, validation)


def shown(made: Scenes, classes: int) -> Pixels:
    """Return which classes each scene shows, uint8 [N, C]."""
    table = np.zeros((len(made.boxes), classes), np.uint8)
    for row, boxes in zip(table, made.boxes, strict=True):
        row[boxes[:, 0].astype(np.int64)] = 1
    return table


def _dataset(
    targets: Callable[[Scenes, int], NDArray[np.generic]],
    scenes: int,
    imbalance: float,
    seed: int,
    size: int,
    validation: float,
) -> Dataset:
    check_range(at_least=1, scenes=scenes, imbalance=imbalance)
    check_range(at_least=0, seed=seed)
    check_range(at_least=24, size=size)
    check_range(at_least=0, below=1, validation=validation)
    train, test, classes = sources(validation)
    number = len(classes)
    long_tail = imbalance ** -(np.arange(number) / max(1, number - 1))
    parts = (
        compose(train, scenes, long_tail, size=size, seed=seed, part="train"),
        compose(test, max(1, scenes // 2), np.ones(number), size=size, seed=seed, part="test"),
    )
    own, measured = (ImageSet(images=made.images, labels=targets(made, number)) for made in parts)
    return Dataset(train=own, test=measured, classes=classes)


def sources(validation: float = 0.0) -> tuple[Material, Material, tuple[str, ...]]:
    """Return what training scenes are made of, what measured ones are made of, and the classes' names.

    Args:
        validation: Share of the training images of which the measured scenes are made; 0 takes test images.

    Raises:
        SystemExit: A data set is missing.
        DataError: A share is so small that it has not an image of each class.
    """
    spec = PluginSpec(
        use="fashion-mnist", args={"root": str(environments.images()), "validation": validation}
    )
    found: Dataset = registry.build("data", spec)
    assert found.test is not None
    with np.load(environments.photographs(), allow_pickle=False) as file:
        train, test = file["train_images"], file["test_images"]
    if validation:
        cut = round(len(train) * (1 - validation))
        train, test = train[:cut], train[cut:]
    if not len(test):
        raise DataError(f"validation = {validation} is less than one photograph; raise it")
    own, measured = (
        Material(objects=part.images[..., 0], labels=part.labels, photographs=photographs)
        for part, photographs in ((found.train, train), (found.test, test))
    )
    return own, measured, found.classes


def compose(
    material: Material, scenes: int, odds: NDArray[np.float64], *, size: int, seed: int, part: str
) -> Scenes:
    """Compose scenes.

    Args:
        material: What they are made of.
        scenes: N.
        odds: [C]: how often each class is drawn, in any unit.
        size: S.
        seed: Of the scenes.
        part: Which scenes these are; others of the same seed are drawn apart.
    """
    members = [np.flatnonzero(material.labels == label) for label in range(len(odds))]
    if empty := [label for label, own in enumerate(members) if not len(own)]:
        raise DataError(f"there is no object of class {empty[0]} to compose scenes of; take more images")
    images = np.zeros((scenes, size, size, 3), np.uint8)
    masks = np.zeros((scenes, size, size), np.uint8)
    boxes = []
    for n in range(scenes):
        rng = seeding.numpy_stream(seed, f"scene-{part}", n)
        images[n] = background(material.photographs, size, rng)
        owner, labels, areas = np.zeros((size, size), np.uint8), [], []
        for label in rng.choice(len(odds), int(rng.integers(1, MOST + 1)), p=odds / odds.sum()).tolist():
            picture = material.objects[int(rng.choice(members[label]))]
            longer = int(rng.integers(round(size * SMALLEST), round(size * LARGEST) + 1))
            if area := paste(images[n], owner, areas, *enlarged(picture, longer), rng):
                labels.append(label)
                areas.append(area)
        masks[n] = np.array([0, *(label + 1 for label in labels)], np.uint8)[owner]
        boxes.append(seen(owner, labels))
    return Scenes(images=images, masks=masks, boxes=boxes)


def background(photographs: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """Return a square part of a photograph, mirrored or not, enlarged to [S, S, 3]."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    side = int(rng.integers(PART[0], PART[1] + 1))
    top, left = (int(rng.integers(length - side + 1)) for length in photograph.shape[:2])
    cut = photograph[top : top + side, left : left + side, :]
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    # Pillow scales in whole numbers: the same bits on every machine.
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(cut)).resize((size, size), Image.Resampling.BILINEAR)
    )


def enlarged(picture: Pixels, longer: int) -> tuple[Pixels, Pixels]:
    """Return an object and how far it covers what is behind it (0 to 255), uint8 [h, w] each.

    Args:
        picture: [H, W], gray, 0 where the object is not.
        longer: The longer side of what is returned, pixels; the object fills it.
    """
    inside = silhouette(picture)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    height, width = picture[cut].shape
    scale = longer / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    own, cover = (
        np.asarray(Image.fromarray(np.ascontiguousarray(one)).resize(shape, Image.Resampling.BILINEAR))
        for one in (picture[cut] * inside[cut], inside[cut].astype(np.uint8) * 255)
    )
    return own, cover


def silhouette(picture: Pixels) -> NDArray[np.bool_]:
    """Return where an object is, bool [H, W], of its gray image [H, W].

    Pixels from ``FAINT`` on, and those above 0 that fill squares of 2 x 2 (a dark garment). Around many
    objects of Fashion-MNIST lie single pixels of 1 to 4 that are no part of them.
    """
    dark = picture > 0
    corners = dark[:-1, :-1] & dark[:-1, 1:] & dark[1:, :-1] & dark[1:, 1:]
    inside: NDArray[np.bool_] = picture >= FAINT
    for rows in (slice(None, -1), slice(1, None)):
        for columns in (slice(None, -1), slice(1, None)):
            inside[rows, columns] |= corners
    return inside


def paste(
    image: Pixels, owner: Pixels, areas: list[int], own: Pixels, cover: Pixels, rng: np.random.Generator
) -> int:
    """Put an object where it hides little of the others; return its area, 0 where there is no such place.

    Args:
        image: [S, S, 3], changed.
        owner: uint8 [S, S], which object is seen at each pixel, 0 is none; changed.
        areas: Pixels of the objects that are there, with those that are hidden by now.
        own: [h, w], the object's pixels, weakened towards its edge as ``cover`` is.
        cover: [h, w].
        rng: Chooses the place.
    """
    height, width = cover.shape
    inside, number = cover >= 128, len(areas) + 1
    free = np.bincount(owner.ravel(), minlength=number)[1:] - (1 - HIDDEN) * np.array(areas)
    for _ in range(TRIES):
        top = int(rng.integers(owner.shape[0] - height + 1))
        left = int(rng.integers(owner.shape[1] - width + 1))
        place = (slice(top, top + height), slice(left, left + width))
        hidden = np.bincount(owner[place][inside], minlength=number)[1:]
        if (hidden <= free).all():
            behind = image[place].astype(np.int64) * (255 - cover[..., None].astype(np.int64))
            image[place] = np.minimum(255, own[..., None] + (behind + 127) // 255)
            owner[place][inside] = number
            return int(inside.sum())
    return 0


def seen(owner: Pixels, labels: list[int]) -> NDArray[np.float64]:
    """Return the boxes [m, 7] of what is seen of each object.

    Args:
        owner: uint8 [S, S]: which object is seen at each pixel, from 1; 0 is none.
        labels: [m], the objects' classes.
    """
    boxes = np.zeros((len(labels), COLUMNS))
    for number, (row, label) in enumerate(zip(boxes, labels, strict=True), 1):
        inside = owner == number
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        row[:] = [label, left, top, right - left, bottom - top, int(inside.sum()), 0]
    return boxes
