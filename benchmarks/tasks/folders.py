"""Composed scenes as the folders that annotation tools write: COCO JSON, YOLO txt or mask PNGs.

    python benchmarks/tasks/folders.py FOLDER [--form coco] [--scenes 1000] [--cameras 20] [--imbalance 50]

The scenes are those of ``scenes.py``, as if taken by cameras that differ: each has a brightness of its own,
and odds of the classes that are half those of the long tail and half drawn from a Dirichlet distribution with
the long tail as its mean, so that it sees much of some classes and little of others. Test scenes have all
cameras and all classes alike. In COCO's form each image has a field ``camera``, in the others its file's name
begins with it: ``cam07-00012.png``.

    coco   FOLDER/annotations/train.json, test.json; FOLDER/train/*.png, FOLDER/test/*.png
    yolo   FOLDER/data.yaml; FOLDER/images/train/*.png, FOLDER/labels/train/*.txt, and test likewise
    masks  FOLDER/train/images/*.png, FOLDER/train/masks/*.png, and test likewise; 0 is background

Needs Fashion-MNIST and CIFAR-10 where ``environments`` finds them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scenes
from numpy.typing import NDArray
from PIL import Image

from fedvision import seeding
from fedvision.data.boxes import AREA, CLASS, HEIGHT, WIDTH, X, Y

DARKEST, BRIGHTEST = 0.6, 1.3
"""Factors on the pixels of the darkest and the brightest camera."""
ALPHA = 0.5


@dataclass(frozen=True, kw_only=True)
class Shots:
    """Scenes by camera, in the order of the cameras."""

    made: scenes.Scenes
    cameras: NDArray[np.int64]
    """[N], from 0."""

    def name(self, number: int) -> str:
        """Return the name of a scene's file without its suffix."""
        return f"cam{self.cameras[number]:02}-{number:05}"


def shots(
    material: scenes.Material, number: int, cameras: int, odds: NDArray[np.float64], *, part: str, seed: int
) -> Shots:
    """Compose the scenes of cameras, as many of each as of the next.

    Args:
        material: What they are made of.
        number: Scenes in all.
        cameras: How many cameras there are.
        odds: [C]: how often each class is drawn over all cameras.
        part: ``"train"``, or ``"test"``, where all cameras draw all classes alike.
        seed: Of scenes and cameras.
    """
    rng = seeding.numpy_stream(seed, "cameras", 0)
    gains = np.linspace(DARKEST, BRIGHTEST, cameras)[rng.permutation(cameras)]
    shares = odds / odds.sum()
    mixtures = (shares + rng.dirichlet(ALPHA * len(odds) * shares, cameras)) / 2
    owner = np.sort(np.arange(number) % cameras)
    found = []
    for camera in range(cameras):
        own = mixtures[camera] if part == "train" else np.ones(len(odds))
        count = int((owner == camera).sum())
        one = scenes.compose(material, count, own, size=96, seed=seed * 1000 + camera, part=part)
        lit = np.minimum(255, one.images * gains[camera]).astype(np.uint8)
        found.append(scenes.Scenes(images=lit, masks=one.masks, boxes=one.boxes))
    made = scenes.Scenes(
        images=np.concatenate([one.images for one in found]),
        masks=np.concatenate([one.masks for one in found]),
        boxes=[boxes for one in found for boxes in one.boxes],
    )
    return Shots(made=made, cameras=owner)


def write_coco(folder: Path, part: str, found: Shots, classes: Sequence[str]) -> None:
    """Write one JSON file of a part, and its images."""
    images, annotations = [], []
    for number, boxes in enumerate(found.made.boxes):
        name = f"{found.name(number)}.png"
        _save(folder / part / name, found.made.images[number])
        height, width = found.made.images.shape[1:3]
        camera = f"cam{found.cameras[number]:02}"
        images.append(
            {"id": number + 1, "file_name": name, "width": width, "height": height, "camera": camera}
        )
        for box in boxes.tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": int(box[CLASS]) + 1,
                    "bbox": [box[X], box[Y], box[WIDTH], box[HEIGHT]],
                    "area": box[AREA],
                    "iscrowd": 0,
                }
            )
    page = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(classes)],
    }
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / f"{part}.json").write_text(json.dumps(page))


def write_yolo(folder: Path, part: str, found: Shots, classes: Sequence[str]) -> None:
    """Write a text file an image of a part, its images, and the names of the classes."""
    labels = folder / "labels" / part
    labels.mkdir(parents=True, exist_ok=True)
    for number, boxes in enumerate(found.made.boxes):
        _save(folder / "images" / part / f"{found.name(number)}.png", found.made.images[number])
        height, width = found.made.images.shape[1:3]
        lines = [
            f"{int(box[CLASS])} {(box[X] + box[WIDTH] / 2) / width:.6f} "
            f"{(box[Y] + box[HEIGHT] / 2) / height:.6f} {box[WIDTH] / width:.6f} {box[HEIGHT] / height:.6f}\n"
            for box in boxes.tolist()
        ]
        (labels / f"{found.name(number)}.txt").write_text("".join(lines))
    names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(classes))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\ntest: images/test\nnames:\n{names}")


def write_masks(folder: Path, part: str, found: Shots, classes: Sequence[str]) -> None:
    """Write the images of a part and, under the same names, their masks."""
    for number, mask in enumerate(found.made.masks):
        _save(folder / part / "images" / f"{found.name(number)}.png", found.made.images[number])
        _save(folder / part / "masks" / f"{found.name(number)}.png", mask)


FORMS: dict[str, Callable[[Path, str, Shots, Sequence[str]], None]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "masks": write_masks,
}


def write(
    folder: Path, form: str, *, number: int, cameras: int, imbalance: float = 50.0, seed: int = 0
) -> None:
    """Write training scenes and half as many test scenes.

    Args:
        folder: Where to; it is made.
        form: One of ``FORMS``.
        number: Training scenes.
        cameras: How many cameras there are.
        imbalance: How many times as often the first class is drawn as the last one.
        seed: Of the scenes.
    """
    train, test, classes = scenes.sources()
    odds = imbalance ** -(np.arange(len(classes)) / max(1, len(classes) - 1))
    for part, material, count in (("train", train, number), ("test", test, max(1, number // 2))):
        FORMS[form](folder, part, shots(material, count, cameras, odds, part=part, seed=seed), classes)


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="composed scenes as folders of images and annotations")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", choices=sorted(FORMS), default="coco")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--cameras", type=int, default=20)
    parser.add_argument("--imbalance", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(
        options.folder,
        options.form,
        number=options.scenes,
        cameras=options.cameras,
        imbalance=options.imbalance,
        seed=options.seed,
    )
