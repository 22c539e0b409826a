"""A class for each pixel across machines: folders of masks in two layouts, masked counts, a server killed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvision.deployment.certificates import make
from fedvision.runs.folder import RunFolder
from tests.deployment.server import mask_folders
from tests.deployment.server.machines import WAIT_S, Machines, digest, eventually
from tests.deployment.server.training_barrier import begun, hold, holding
from tests.segments import SIDE, squares

pytestmark = pytest.mark.long

NAMES = ("east", "north", "south", "west")
EXPERIMENT = """
name = "segments"
seed = 5
rounds = 3
[task]
use = "segmentation"
background = 0
[data]
use = "mask_folders:of_all"
folder = "@/images"
[partition]
use = "column"
name = "site"
[model]
use = "unet"
width = 4
depth = 2
[loss]
use = "dice"
scheme = "inverse"
cross_entropy = 1.0
prior = "global"
[transforms]
flip = true
[training]
batch_size = 4
lr = 0.1
[evaluation]
holdout = 0.25
with_training = true
"""


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


class Masked(Machines):
    """Each client has a folder of masks of its own, north's with the names and values of Cityscapes."""

    def _give_images(self) -> None:
        shutil.copy(mask_folders.__file__, self.folder)  # beside the experiment, as a plug-in of one's own
        data, images = squares(images=40, test=6), self.folder / "images"
        assert data.test is not None
        for number, (pixels, mask) in enumerate(zip(data.train.images, data.train.labels, strict=True)):
            name = self.names[number % 4]
            if name == "north":
                values = np.array([7, 8, 11, *[1] * 253], np.uint8)[mask]
                place = f"train/aachen/aachen_{number:06}"
                save(images / f"north/leftImg8bit/{place}_leftImg8bit.png", pixels[..., 0])
                save(images / f"north/gtFine/{place}_gtFine_labelIds.png", values)
            else:
                save(images / f"{name}/images/{number:02}.png", pixels[..., 0])
                save(images / f"{name}/masks/{number:02}.png", mask)
        for number, (pixels, mask) in enumerate(zip(data.test.images, data.test.labels, strict=True)):
            save(images / f"test/images/{number}.png", pixels[..., 0])
            save(images / f"test/masks/{number}.png", mask)

    def data_lines(self, name: str) -> list[str]:
        """Return the images' part of a client's file."""
        keys = {"use": "mask-folder", "path": f"images/{name}", **mask_folders.KEYS}
        keys |= mask_folders.OWN.get(name, {})
        return [f"{key} = {json.dumps(value)}" for key, value in keys.items()]


def test_folders_of_masks_train_to_the_simulations_bits_behind_masks_across_a_kill(tmp_path: Path) -> None:
    make(tmp_path / "pki", hosts=["localhost"], clients=NAMES)
    here = Masked(tmp_path, tmp_path / "pki", EXPERIMENT.replace("@", str(tmp_path)), NAMES)
    here.share = dict.fromkeys(NAMES[1:], "masked")
    try:
        server = here.server()
        for name in NAMES:
            here.client(name, **(holding(here, name, 2) if name == "north" else {}))
        eventually(lambda: begun(here, "north") == [1, 2] or server.poll() is not None, "the second round")
        server.kill()
        server.wait()
        assert len(here.rounds()) == 1, here.log("server")
        hold(here, "north")
        assert here.server().wait(WAIT_S) == 0, here.log("server")
        assert digest(here.out) == here.simulated(), "the global pixel counts must be those of all"
    finally:
        here.end()
    ours, theirs = (RunFolder.read(path) for path in (here.out, here.folder / "simulated"))
    for one, other in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert not one["refused"]
        assert one["server"] == other["server"]
    assert ours.split()["totals"] == np.sum(theirs.split()["counts"], axis=0).tolist()

    # Masked sums give all that is made of tables; what is made of single images nobody knows.
    last, whole = (run.rounds()[-1]["local"] for run in (ours, theirs))
    assert last["pixels"] == whole["pixels"] > 0
    assert last["pixels"] % (SIDE * (SIDE - 1)) == 0
    made = {key: value for key, value in whole["scores"].items() if key != "case_dice"}
    assert {key: value for key, value in last["scores"].items() if key != "case_dice"} == made
    assert 0 <= whole["scores"]["case_dice"] <= 1
    assert last["scores"].get("case_dice") is None
    assert last["classes"]["iou"] == whole["classes"]["iou"]
    assert not any(value is not None and math.isfinite(value) for value in last["classes"]["case_dice"])
    # The server's own test images it knows one by one.
    assert ours.rounds()[-1]["server"]["scores"]["case_dice"] is not None
    members = ours.members()
    assert [members.members[client].images is None for client in range(4)] == [False, True, True, True]
    page = " ".join((here.out / "report.html").read_text().split())
    assert "3 of 4 clients share class counts in sums alone, or not at all" in page
