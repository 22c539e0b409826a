"""What the mask folders of several clients hold together: a plug-in that stands beside an experiment."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.sources.mask_folder import mask_folder

CLASSES = ("ground", "bright", "brighter")
KEYS = {"size": 16, "channels": 1, "classes": CLASSES, "workers": 1}
OWN = {
    "north": {
        "images": "leftImg8bit",
        "masks": "gtFine",
        "image_suffix": "_leftImg8bit.png",
        "mask_suffix": "_gtFine_labelIds.png",
        "values": (7, 8, 11),
        "ignore": (0, 1),
    }
}
"""What is otherwise in the folder of a client, which has the layout of Cityscapes."""


def of_all(*, folder: str) -> Dataset:
    """Return the images of all clients with a column ``site``, and the server's test images."""
    place = Path(folder)
    names = sorted(one.name for one in place.iterdir() if one.name != "test")
    found = [mask_folder(path=str(place / name), **KEYS, **OWN.get(name, {})).train for name in names]
    test = mask_folder(path=str(place / "test"), **KEYS).train
    train = ImageSet(
        images=np.concatenate([one.images for one in found]),
        labels=np.concatenate([one.labels for one in found]),
        columns={"site": np.repeat(names, [len(one) for one in found])},
    )
    return Dataset(train=train, test=test, classes=CLASSES)
