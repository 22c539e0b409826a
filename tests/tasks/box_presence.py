"""A task on boxes that needs no network for them: which classes an image has a box of."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedvision.data import targets as known_forms
from fedvision.data.boxes import class_table
from fedvision.data.own_classes import holds_boxes
from fedvision.tasks.multilabel import MultiLabel


class Presence(MultiLabel):
    """Boxes become labels of which an image may have several, for training and measurement."""

    name: ClassVar[str] = "presence"
    targets: ClassVar[str] = "boxes"
    plugins_of: ClassVar[tuple[str, ...]] = ("multi-label",)
    stacks: ClassVar[bool] = False

    def fits(self, targets: NDArray[Any]) -> bool:
        return holds_boxes(targets)

    def class_counts(self, targets: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
        table = class_table(targets, num_classes) if holds_boxes(targets) else targets
        return table.sum(0, dtype=np.int64)

    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        return known_forms.strata((class_table(targets, 2) > 0).astype(np.uint8))

    def collate(self, images: NDArray[np.uint8], targets: NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = (class_table(targets, 2) > 0).astype(np.uint8)
        return torch.from_numpy(images), torch.from_numpy(labels)
