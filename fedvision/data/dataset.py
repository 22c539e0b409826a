"""Images at rest: uint8 arrays in memory or a memory map, with labels and other facts about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.data.memmap import MemmapArray, reference
from fedvision.data.naming import visible
from fedvision.data.targets import Targets, check_form
from fedvision.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """N labelled images.

    Raises:
        DataError: Arrays do not fit each other or have another type.
    """

    images: NDArray[Any]
    """uint8 [N, H, W, channels]; or in their place the features of V views of each, float32 [N, V, 1, D]. It
    may be a memory map."""
    labels: Targets
    """int64 [N], from 0; or uint8 [N, L] of 0 and 1, where an image may have several labels; or, for a task
    of another form, numbers [N, ...] of three dimensions or more."""
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Other facts by name, each [N]: a manifest's columns, a folder level."""
    names: Sequence[str] = ()
    """[N] names of the files that the images came from, for messages; empty where there are none."""
    group: str = ""
    """The column whose equal values belong together (a patient), which no split parts; empty is none."""
    further: NDArray[np.float32] | None = None
    """float32 [N, W]: what a network reads beside the pixels; None where it reads nothing else."""

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("labels", self.labels)):
            if not isinstance(value, np.ndarray):
                raise DataError(f"{name} must be a NumPy array, not {type(value).__name__}")
        kind, shape = self.images.dtype, self.images.shape
        if len(shape) != 4 or not (kind == np.uint8 or (kind == np.float32 and shape[2] == 1)):
            raise DataError(
                f"images must be uint8 [N, H, W, channels], not {self.images.dtype} {list(self.images.shape)}"
            )
        check_form(self.labels, len(self.images))
        rows = self.further
        if rows is not None and (rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != len(self.images)):
            raise DataError(f"further inputs must be float32 [N, W], not {rows.dtype} {list(rows.shape)}")
        if self.group and self.group not in self.columns:
            known = ", ".join(sorted(self.columns)) or "none"
            raise DataError(f"data.group = {self.group!r}: there is no such column; there are: {known}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, ...]:
        """Height, width and channels of the images; of features 1 and D, however many views an image has."""
        return self.images.shape[1:] if self.images.dtype == np.uint8 else self.images.shape[2:]

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: mapped images by their file, no names of files."""
        return vars(self) | {"images": reference(self.images) or self.images, "names": ()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        images = state["images"]
        vars(self).update(state, images=images.open() if isinstance(images, MemmapArray) else images)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a data source returns.

    Raises:
        DataError: A part is no image set, a class is named twice, or images differ in size or channels.
    """

    train: ImageSet
    """Images to be spread over clients, or the client's own."""
    test: ImageSet | None = None
    """Images for the server's measurement, or None."""
    classes: tuple[str, ...]
    """Class names; label c is ``classes[c]``. What no page or terminal can show is written ``\\xe9``."""
    notices: tuple[str, ...] = ()
    """Sentences for the run's summary, such as which files could not be read."""

    def __post_init__(self) -> None:
        names = tuple(visible(str(name)) for name in self.classes)
        object.__setattr__(self, "classes", names)
        for part, value in (("train", self.train), ("test", self.test)):
            if not isinstance(value, ImageSet) and (part == "train" or value is not None):
                raise DataError(
                    f"{part} must be a fedvision.data.dataset.ImageSet, not {type(value).__name__}"
                )
        if double := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"{len(double)} class names are there twice, such as {double[0]!r}; rename one")
        if self.test is not None and self.test.size != self.train.size:
            sizes = (list(part.size) for part in (self.test, self.train))
            raise DataError(
                "test images are {}, and training images {}; bring them to one size".format(*sizes)
            )
