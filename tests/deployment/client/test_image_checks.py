"""What the examination of a machine says of boxes and of classes of pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset
from fedvision.data.sources.annotations.coco import coco
from fedvision.data.sources.annotations.coco_masks import coco_masks
from fedvision.deployment.client import image_checks
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.local_data import under_classes
from fedvision.errors import DataError
from fedvision.types import PluginSpec
from tests.data.annotated import box, coco_folder, document, image, rows_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    square = [[0, 0, 4, 0, 4, 4, 0, 4]]
    annotations = [
        box(1, 1, [0, 0, 4, 4], segmentation=square),
        box(2, 1, [4, 4, 4, 2], segmentation=square),
        box(3, 2, [1, 1, 4, 4], iscrowd=1, segmentation=square),
    ]
    return coco_folder(tmp_path, document([image(1), image(2), image(3)], annotations))


def opened(path: Path, source: Any = coco) -> Dataset:
    dataset: Dataset = source(path=str(path), size=8, channels=1, workers=1, cache=f"{path}-c")
    return dataset


def client(**label_map: str) -> ClientMachineConfig:
    link = {"address": "localhost:1", "key": "client.key", "root_certificate": "ca.crt"}
    data = {"use": "coco", "path": "boxes.json", "size": 8, "label_map": label_map}
    return ClientMachineConfig.from_dict({"name": "north", "superlink": link, "data": data})


def experiment(*classes: str, task: str = "tests.tasks.box_presence:Presence") -> ExperimentConfig:
    config = ExperimentConfig.from_dict({"data": {"use": "coco", "classes": list(classes)}})
    return dataclasses.replace(config, task=PluginSpec(use=task))


def test_boxes_are_counted_by_class(path: Path) -> None:
    assert list(image_checks.histogram(opened(path))) == [
        ("OK", "dog        2  ##############################"),
        ("WARN", "no training image of cat"),
        (
            "OK",
            "2 boxes in 3 images: 1 an image (median), 2 at most, 1 image without any; beside them 1 crowd "
            "or ignored objects",
        ),
        ("OK", "the smallest box has 4.0 x 2.0 pixels after decoding, 4 x 2 in its file"),
        (
            "OK",
            "by area in the files: 2 small (below 32 x 32 pixels), 0 medium, 0 large (from 96 x 96 on)",
        ),
    ]


def test_of_classes_of_pixels_the_images_that_show_them_are_counted(path: Path) -> None:
    told = [text for _, text in image_checks.histogram(opened(path, coco_masks))]
    assert [text.split("#")[0].split() for text in told] == [
        ["background", "3"],
        ["dog", "1"],
        ["no", "training", "image", "of", "cat"],
    ]


def test_boxes_are_for_a_task_that_takes_them(path: Path) -> None:
    dataset = opened(path)
    assert list(image_checks.form(client(), dataset, experiment("dog", "cat"))) == [
        ("OK", "images have boxes, as task 'presence' needs it")
    ]
    with pytest.raises(DataError, match="task 'classification' needs one class an image"):
        list(image_checks.form(client(), dataset, experiment("dog", "cat", task="classification")))


def test_own_names_of_boxes(path: Path) -> None:
    """A client calls owls dogs; what it drew no boxes of it has to name."""
    dataset, wanted = opened(path), experiment("cat", "owl")
    (line,) = [text for level, text in image_checks.labels(client(), dataset, wanted) if level == "FAIL"][:1]
    assert line.startswith("label 'dog' is no class of the experiment")
    told = list(image_checks.labels(client(dog="owl"), dataset, wanted))
    assert told[0] == ("OK", "every label is one of the experiment's 2 classes, or left out")
    moved = under_classes(dataset, client(dog="owl"), ("cat", "owl"))
    assert [row[0] for row in rows_of(moved.train)["1.png"]] == [1, 1]
    told = list(image_checks.labels(client(dog="owl"), dataset, experiment("cat", "owl", "eel")))
    assert told[0][0] == "FAIL"
    assert told[0][1].startswith("this data does not say which images have 'eel'")
