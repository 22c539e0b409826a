"""NIfTI volumes with label volumes, as slices: the form in which medical segmentation data comes.

::

    PATH/imagesTr/*.nii.gz, PATH/labelsTr/*.nii.gz        the Medical Segmentation Decathlon's layout

Simpson et al. 2019, "A large annotated medical image dataset for the development and evaluation of
segmentation algorithms", arXiv 1902.09063; its ``dataset.json`` names the classes. Volumes are turned to the
closest of the standard orientations (RAS+) and cut along one axis. A patient's slices are alike, so the
volume is the column by which data is grouped: no split parts them. Needs the package nibabel.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision import cores
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.decoding.decode_once import decode_once
from fedvision.data.decoding.decoder import Outcome
from fedvision.data.decoding.process_pool import Answer, PixelFormat
from fedvision.data.paths import expand
from fedvision.data.sources.mask_code import MaskCode, mask_code, with_classes
from fedvision.data.sources.validation_share import with_validation
from fedvision.data.sources.volume_slices import Cut, slices_of
from fedvision.errors import DataError, first_line
from fedvision.ranges import check_range
from fedvision.shared_keys import takes_fields_of

VOLUME = "volume"
"""The column with the volume of each slice."""
_SUFFIXES = (".nii", ".nii.gz")
_CHANNEL = "_0000"
"""What nnU-Net adds to the name of an image's first channel."""


@dataclass(frozen=True, kw_only=True)
class VolumePaths:
    """Where volumes and label volumes are.

    Raises:
        ValueError: One of the keys for test images is given without the other.
    """

    path: str
    """The folder."""
    images: str = "imagesTr"
    """Folder of the volumes below ``path``, or one file."""
    masks: str = "labelsTr"
    """Folder of the label volumes, which have the names of the volumes (nnU-Net's ``_0000`` apart), or one
    file."""
    test_images: str = ""
    """The same of the test images; empty where there are none."""
    test_masks: str = ""
    """The same of their label volumes."""

    def __post_init__(self) -> None:
        if bool(self.test_images) != bool(self.test_masks):
            raise ValueError("test_images and test_masks belong together; name both, or neither")


@takes_fields_of(VolumePaths, Cut)
def nifti(
    *,
    classes: Sequence[str] | None = None,
    values: Sequence[int] = (),
    regions: Mapping[str, Sequence[int]] | None = None,
    ignore: int = 255,
    validation: float = 0.0,
    group: str = VOLUME,
    cache: str = "",
    workers: int = 0,
    paths: VolumePaths,
    cut: Cut,
) -> Dataset:
    """Read volumes and their label volumes as gray slices with masks, all of them in memory.

    Volumes are read once; slices are kept in the cache.

    Args:
        classes: Class names in the order of their numbers; by default those in ``dataset.json``, else the
            numbers up to the highest one.
        values: The value of each class; by default its number.
        regions: Class -> its values; all other values are the class ``background``.
        ignore: The value of voxels that are neither trained on nor measured, unless ``values`` has it.
        validation: Share of the training slices, whole volumes, that becomes the test set, in the place of
            one that there is.
        group: The column whose equal values no split parts; empty parts volumes as well.
        cache: Folder of decoded slices; empty is $FEDVISION_CACHE, else ~/.cache/fedvision/decoded.
        workers: Volumes that are read at a time, each several times in memory; 0 is one per CPU core, and 4
            at most.
        paths: Where the volumes are.
        cut: How volumes become slices.

    Returns:
        Images uint8 [N, size, size, 1], masks uint8 [N, size, size], and columns ``volume``, ``slice`` (its
        place along the axis) and ``spacing`` (millimetres of rows, columns and between slices).

    Raises:
        ValueError: A value is out of range, or keys contradict each other.
        PluginError: nibabel is not installed.
        DataError: A volume is missing, cannot be read, or has no label volume on the same grid, or the cache
            cannot be used.
    """
    check_range(at_least=0, workers=workers)
    check_range(at_least=0, below=1, validation=validation)
    root = expand(paths.path)
    if classes is None and not values and not regions:
        classes = _named_in(root)
    code = mask_code(classes, values, regions=regions, ignore=ignore)
    reading = _Reading(root, code, cut, group, cache, workers or min(4, cores.available()))
    train = _read_set(reading, paths.images, paths.masks)
    test = _read_set(reading, paths.test_images, paths.test_masks) if paths.test_images else None
    names = with_classes(code, [*train.labels, *(test.labels if test else ())], str(root))
    return with_validation(Dataset(train=train, test=test, classes=names), validation)


class _Reading(NamedTuple):
    """What both sets share."""

    root: Path
    code: MaskCode
    cut: Cut
    group: str
    cache: str
    workers: int


def _read_set(how: _Reading, images: str, masks: str) -> ImageSet:
    root = how.root
    volumes, drawn = _files(root / images, "images"), _files(root / masks, "masks")
    single = len(volumes) == len(drawn) == 1 and (root / images).is_file()
    if single:
        drawn = dict(zip(volumes, drawn.values(), strict=True))
    if lacking := [name for name in volumes if name not in drawn]:
        raise DataError(
            f"{root / masks}: there is no label volume {lacking[0]}.nii.gz for {volumes[lacking[0]]}; add "
            "it, or name the folder of label volumes with data.masks"
        )
    files = [str(file.absolute()) for name in volumes for file in (volumes[name], drawn[name])]
    entry = decode_once(
        how.cache,
        root,
        files,
        PixelFormat(how.cut.size, 2, how.cut.fit),
        what="volumes",
        number=len(volumes),
        meaning=("slices", *how.cut.meaning, *how.code.meaning),
        make=lambda: _read_all([(file, drawn[name]) for name, file in volumes.items()], how),
        advance=lambda answer: 1,
    )
    if not len(entry.images):
        raise DataError(f"{root / images}: no slice is left; set data.empty = true, or lower data.every")
    names, facts = list(volumes), [entry.notes[at] for at in range(len(entry.images))]
    columns: dict[str, NDArray[Any]] = {
        VOLUME: np.array([names[number] for number, _, _ in facts]),
        "slice": np.array([place for _, place, _ in facts]),
        "spacing": np.array([spacing for _, _, spacing in facts]),
    }
    return ImageSet(
        images=np.ascontiguousarray(entry.images[..., :1]),
        labels=np.ascontiguousarray(entry.images[..., 1]),
        columns=columns,
        names=[f"{names[number]}[{place}]" for number, place, _ in facts],
        group=how.group,
    )


def _read_all(pairs: Sequence[tuple[Path, Path]], how: _Reading) -> Iterator[Answer]:
    """Yield each volume's slices, image and mask as two channels, noted with their volume's number."""
    with ThreadPoolExecutor(how.workers) as pool:
        read = functools.partial(slices_of, code=how.code, cut=how.cut)
        for number, one in enumerate(pool.map(read, *zip(*pairs, strict=True))):
            notes: list[Outcome] = [[number, place, one.spacing] for place in one.places]
            yield notes, one.pixels


def _files(place: Path, key: str) -> dict[str, Path]:
    """Return volumes by their names without suffix and nnU-Net's number of the channel."""
    if place.is_file():
        return {_stem(place): place}
    if not place.is_dir():
        raise DataError(f"{place}: there is no such folder; name it with data.{key}, or correct data.path")
    found = dict[str, Path]()
    for file in sorted(place.iterdir()):
        if file.name.startswith(".") or not file.name.lower().endswith(_SUFFIXES):
            continue
        if (other := found.setdefault(_stem(file), file)) != file:
            raise DataError(f"{file}: {other.name} has the same name; keep one of them")
    if not found:
        raise DataError(f"{place}: there are no volumes (.nii, .nii.gz) in it; correct data.{key}")
    return found


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii").removesuffix(_CHANNEL)


def _named_in(root: Path) -> list[str] | None:
    """Return the class names of a Decathlon's ``dataset.json``, None without one.

    Raises:
        DataError: It is damaged, or its numbers are not 0, 1, ...
    """
    file = root / "dataset.json"
    if not file.is_file():
        return None
    try:
        labels = json.loads(file.read_text())["labels"]
        # The Decathlon has {"0": "background"}, nnU-Net {"background": 0}.
        numbered = (
            {int(k): str(v) for k, v in labels.items()}
            if "0" in labels
            else {int(v): str(k) for k, v in labels.items()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: its labels cannot be read ({first_line(error)}); name the classes in data.classes"
        ) from error
    if sorted(numbered) != list(range(len(numbered))):
        raise DataError(f"{file}: its labels are not numbered 0, 1, ...; name the classes in data.classes")
    return [numbered[number] for number in range(len(numbered))]
