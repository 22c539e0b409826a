"""Notices before a run: that nothing is measured, or not all classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.partition.notices import column_notices, measurement_notices
from fedvision.data.sources.arrays import digits
from tests.experiments import tiny


def without(dataset: Dataset, *classes: int) -> Dataset:
    """Return a data set whose test images lack some classes."""
    assert dataset.test is not None
    retained = ~np.isin(dataset.test.labels, classes)
    return replace(
        dataset, test=ImageSet(images=dataset.test.images[retained], labels=dataset.test.labels[retained])
    )


def test_classes_without_test_images_are_named() -> None:
    assert measurement_notices(tiny(), digits()) == []
    assert measurement_notices(tiny(), without(digits(), 3, 7)) == [
        "there are no test images of 3, 7; balanced accuracy leaves them out"
    ]


def without_keys() -> Dataset:
    """Return a plug-in's images."""
    return digits()


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        ({"use": f"{__name__}:without_keys"}, "evaluation.holdout = 0.2"),
        (
            {"use": "image-folder", "path": "x", "size": 8},
            "data.validation = 0.2 (for the server) or evaluation.holdout = 0.2 (on the clients)",
        ),
    ],
)
def test_a_run_that_measures_nothing_names_the_keys(table: dict[str, object], keys: str) -> None:
    untested = replace(digits(), test=None)
    assert measurement_notices(tiny(data=table), untested) == [
        f"nothing will be measured: there are no test images and no holdout; set {keys}"
    ]
    assert measurement_notices(tiny(data=table, evaluation={"holdout": 0.2}), untested) == []


@pytest.mark.parametrize("key", ["partition", "merged", "group"])
def test_notice_on_clients_and_groups_that_are_alike(key: str) -> None:
    sites = ["North", "south", "north ", "S"]
    images = ImageSet(
        images=np.zeros((4, 8, 8, 1), np.uint8),
        labels=np.arange(4) % 2,
        columns={
            "site": np.array(sites),
            "other": np.array(["a", "A", "b", "c"]),
        },
        group="site" if key == "group" else "",
    )
    data = Dataset(train=images, test=None, classes=("no", "yes"))
    partition = {"use": "column", "name": "site", "merge": key == "merged"}
    config = tiny(partition={"use": "iid", "clients": 2} if key == "group" else partition)
    assert column_notices(config, data) == [
        "values of the column 'site' 'North' and 'north ' differ only in case or blanks; rename one where "
        "they mean the same"
    ]
    assert column_notices(tiny(), digits()) == []
