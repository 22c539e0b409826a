"""What the examination of a machine draws of its images."""

from __future__ import annotations

import numpy as np
import pytest

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.deployment.client import image_checks


@pytest.mark.parametrize(
    ("several", "sentence"),
    [(False, "and 2 rarer classes with 3 images"), (True, "and 2 rarer labels with up to 2 images each")],
)
def test_many_classes_are_drawn_in_part_and_vacant_ones_are_named(several: bool, sentence: str) -> None:
    counts = [*range(27, 0, -1), 0]
    numbers = np.repeat(np.arange(28), counts)
    labels = np.eye(28, dtype=np.uint8)[numbers] if several else numbers
    images = np.zeros((len(numbers), 1, 1, 1), np.uint8)
    dataset = Dataset(classes=tuple(map(str, range(28))), train=ImageSet(images=images, labels=labels))
    found = list(image_checks.histogram(dataset))
    assert found[25] == ("OK", sentence)
    assert found[26] == ("WARN", "no training image of 27")
    assert found[24][1].split()[:2] == ["24", "3"]
