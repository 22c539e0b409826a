"""Objects found across machines: a client has COCO JSON, the other YOLO's text files; the server is killed.

The simulation puts together what both folders hold, each in the order of its own source.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvision.data.boxes import CLASS, COUNT, CROWD, HEIGHT, WIDTH, X, Y
from fedvision.data.dataset import ImageSet
from fedvision.runs import worst_images
from fedvision.runs.folder import RunFolder
from tests.deployment.server import two_folders
from tests.deployment.server.machines import WAIT_S, Machines, digest, eventually
from tests.deployment.server.training_barrier import begun, hold, holding
from tests.detection_data import CLASSES, SIDE, squares

pytestmark = pytest.mark.long

EXPERIMENT = """
name = "objects"
seed = 5
rounds = 3
[task]
use = "detection"
[data]
use = "two_folders:of_both"
folder = "@"
[partition]
use = "column"
name = "site"
[model]
use = "fcos"
backbone = { use = "resnet8", width = 8 }
channels = 8
levels = 1
depth = 1
[loss]
use = "class-balanced-sigmoid-focal"
prior = "global"
[transforms]
flip = true
[training]
batch_size = 4
lr = 0.05
[evaluation]
holdout = 0.25
with_training = true
"""


def write_images(images: ImageSet, names: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(names, images.images, strict=True):
        Image.fromarray(pixels).save(folder / name)


def boxes_of(row: np.ndarray) -> list[list[float]]:
    found: list[list[float]] = row[1 : 1 + int(row[0, COUNT])].tolist()
    return found


def coco_text(images: ImageSet, names: Sequence[str]) -> str:
    """Return the COCO JSON of some images."""
    page: dict[str, Any] = {"images": [], "annotations": []}
    page["categories"] = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
    for number, (name, row) in enumerate(zip(names, images.labels, strict=True)):
        facts = {"id": number, "file_name": name, "width": SIDE, "height": SIDE}
        page["images"].append(facts)
        for box in boxes_of(row):
            page["annotations"].append(
                {
                    "id": len(page["annotations"]),
                    "image_id": number,
                    "category_id": int(box[CLASS]) + 1,
                    "bbox": box[X : HEIGHT + 1],
                    "area": box[WIDTH] * box[HEIGHT],
                    "iscrowd": int(box[CROWD]),
                }
            )
    return json.dumps(page)


def yolo_text(row: np.ndarray) -> str:
    """Return the text file of an image; of sides that are powers of 2 its numbers are exact."""
    return "".join(
        f"{int(box[CLASS])} {(box[X] + box[WIDTH] / 2) / SIDE!r} {(box[Y] + box[HEIGHT] / 2) / SIDE!r} "
        f"{box[WIDTH] / SIDE!r} {box[HEIGHT] / SIDE!r}\n"
        for box in boxes_of(row)
    )


def part(images: ImageSet, rows: slice) -> ImageSet:
    return ImageSet(images=images.images[rows], labels=images.labels[rows])


class Annotated(Machines):
    """North has COCO JSON, south YOLO's text files, in which there are no crowds."""

    def _give_images(self) -> None:
        shutil.copy(two_folders.__file__, self.folder)  # beside the experiment, as a plug-in of one's own
        data = squares()
        assert data.test is not None
        north, south = part(data.train, slice(12)), part(data.train, slice(12, None))
        assert north.labels[:, 1:, CROWD].any()
        assert not south.labels[:, 1:, CROWD].any()
        names = [f"image-{number:02}.png" for number in range(len(data.train))]
        tests = [f"test-{number:02}.png" for number in range(len(data.test))]
        for images, own in ((data.train, names), (data.test, tests)):
            write_images(images, own, self.folder / "images")
        write_images(data.test, tests, self.folder / "test")
        (self.folder / "test.json").write_text(coco_text(data.test, tests))
        write_images(north, names[:12], self.folder / "north")
        (self.folder / "north.json").write_text(coco_text(north, names[:12]))
        write_images(south, names[12:], self.folder / "south/images/train")
        labels = self.folder / "south/labels/train"
        labels.mkdir(parents=True)
        for name, row in zip(names[12:], south.labels, strict=True):
            (labels / name.replace(".png", ".txt")).write_text(yolo_text(row))
        lines = [f"  {number}: {name}" for number, name in enumerate(CLASSES)]
        (self.folder / "south/data.yaml").write_text("\n".join(["train: images/train", "names:", *lines, ""]))

    def data_lines(self, name: str) -> list[str]:
        """Return the images' part of a client's file."""
        if name == "north":
            return ['use = "coco"', 'path = "north.json"', 'root = "north"', f"size = {SIDE}"]
        return ['use = "yolo"', 'path = "south"', f"size = {SIDE}"]


def test_two_formats_train_to_the_simulations_bits_across_a_kill(tmp_path: Path, pki: Path) -> None:
    here = Annotated(tmp_path, pki, EXPERIMENT.replace("@", str(tmp_path)))
    try:
        server = here.server()
        for name in here.names:
            here.client(name, **(holding(here, name, 2) if name == "north" else {}))
        eventually(lambda: begun(here, "north") == [1, 2] or server.poll() is not None, "the second round")
        server.kill()
        server.wait()
        assert len(here.rounds()) == 1, here.log("server")
        hold(here, "north")
        assert here.server().wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated()
    finally:
        here.end()
    runs = [RunFolder.read(path) for path in (here.out, here.folder / "simulated")]
    for ours, theirs in zip(*(run.rounds() for run in runs), strict=True):
        assert not ours["refused"]
        assert ours["server"] == theirs["server"]
        assert ours.get("received") == theirs.get("received")
    pictures = [run.path / worst_images.FILE for run in runs]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    last = [run.rounds()[-1] for run in runs]
    assert last[0]["local"] == last[1]["local"]
    assert last[0]["server"]["images"] == 6
    assert "ap_small" in last[0]["server"]["scores"]
    assert runs[0].split()["totals"] == np.sum(runs[1].split()["counts"], axis=0).tolist()
