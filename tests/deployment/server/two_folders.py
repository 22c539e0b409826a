"""What the annotated folders of two clients hold together: a plug-in that stands beside an experiment."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.sources.annotations.coco import coco
from fedvision.data.sources.annotations.yolo import yolo


def of_both(*, folder: str) -> Dataset:
    """Return the images of both clients with a column ``site``, and the server's test images."""
    place, files = Path(folder), {"size": 32}
    north = coco(path=str(place / "north.json"), root=str(place / "north"), **files)
    south = yolo(path=str(place / "south"), **files)
    test = coco(path=str(place / "test.json"), root=str(place / "test"), **files)
    assert north.classes == south.classes == test.classes
    most = max(one.train.labels.shape[1] for one in (north, south))
    parts = [
        np.pad(one.train.labels, ((0, 0), (0, most - one.train.labels.shape[1]), (0, 0)))
        for one in (north, south)
    ]
    train = ImageSet(
        images=np.concatenate([north.train.images, south.train.images]),
        labels=np.concatenate(parts),
        columns={"site": np.array(["north"] * len(north.train) + ["south"] * len(south.train))},
    )
    return Dataset(train=train, test=test.train, classes=north.classes)
