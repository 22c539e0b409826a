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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedvision import cores
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.decoding.decode_once import decode_once
from fedvision.data.decoding.decoder import Outcome
from fedvision.data.decoding.pixels import FITS, fitted_to
from fedvision.data.decoding.process_pool import Answer, PixelFormat
from fedvision.data.masks import IGNORED
from fedvision.data.paths import expand
from fedvision.data.sources.mask_code import MaskCode, mask_code, with_classes
from fedvision.data.sources.validation_share import with_validation
from fedvision.errors import DataError, PluginError, first_line
from fedvision.ranges import check_range

AXES = ("sagittal", "coronal", "axial")
"""Which axis of a volume in RAS+ orientation is cut along: x, y or z."""
VOLUME = "volume"
"""The column with the volume of each slice."""
_SUFFIXES = (".nii", ".nii.gz")
_NEARLY = 1e-3
"""How far labels that are stored as fractions may be from whole numbers."""
_CHANNEL = "_0000"
"""What nnU-Net adds to the name of an image's first channel."""


def nifti(
    *,
    path: str,
    size: int,
    images: str = "imagesTr",
    masks: str = "labelsTr",
    test_images: str = "",
    test_masks: str = "",
    axis: str = "axial",
    every: int = 1,
    empty: bool = True,
    channel: int = 0,
    window: Sequence[float] = (),
    percentiles: Sequence[float] = (0.5, 99.5),
    classes: Sequence[str] | None = None,
    values: Sequence[int] = (),
    regions: Mapping[str, Sequence[int]] | None = None,
    ignore: int = 255,
    fit: str = "pad",
    validation: float = 0.0,
    group: str = VOLUME,
    cache: str = "",
    workers: int = 0,
) -> Dataset:
    """Read volumes and their label volumes as gray slices with masks, all of them in memory.

    Volumes are read once; slices are kept in the cache.

    Args:
        path: The folder.
        size: Side of the square slices in pixels; spacing is not evened out.
        images: Folder of the volumes below ``path``, or one file.
        masks: Folder of the label volumes, which have the names of the volumes (nnU-Net's ``_0000`` apart),
            or one file.
        test_images: The same of the test images; empty where there are none.
        test_masks: The same of their label volumes.
        axis: Along which volumes are cut: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        every: Takes every n-th slice.
        empty: Whether slices are taken whose mask holds the first class alone.
        channel: Which one, from 0, of volumes with several (a fourth axis).
        window: [low, high] in the volume's own unit, such as Hounsfield's, which become 0 and 255.
        percentiles: Without a window, the percentiles of each volume that become 0 and 255.
        classes: Class names in the order of their numbers; by default those in ``dataset.json``, else the
            numbers up to the highest one.
        values: The value of each class; by default its number.
        regions: Class -> its values; all other values are the class ``background``.
        ignore: The value of voxels that are neither trained on nor measured, unless ``values`` has it.
        fit: ``"pad"`` (bars, which are ignored), ``"crop"`` or ``"stretch"``; ``"exact"`` needs slices of
            ``size``.
        validation: Share of the training slices, whole volumes, that becomes the test set, in the place of
            one that there is.
        group: The column whose equal values no split parts; empty parts volumes as well.
        cache: Folder of decoded slices; empty is $FEDVISION_CACHE, else ~/.cache/fedvision/decoded.
        workers: Volumes that are read at a time, each several times in memory; 0 is one per CPU core, and 4
            at most.

    Returns:
        Images uint8 [N, size, size, 1], masks uint8 [N, size, size], and columns ``volume``, ``slice`` (its
        place along the axis) and ``spacing`` (millimetres of rows, columns and between slices).

    Raises:
        ValueError: A value is out of range, or keys contradict each other.
        PluginError: nibabel is not installed.
        DataError: A volume is missing, cannot be read, or has no label volume on the same grid, or the cache
            cannot be used.
    """
    check_range(at_least=1, size=size, every=every)
    check_range(at_least=0, channel=channel, workers=workers)
    check_range(at_least=0, below=1, validation=validation)
    for key, given, known in (("axis", axis, AXES), ("fit", fit, FITS)):
        if given not in known:
            raise ValueError(f"{key} must be one of {', '.join(known)}, not {given!r}")
    if bool(test_images) != bool(test_masks):
        raise ValueError("test_images and test_masks belong together; name both, or neither")
    root = expand(path)
    if classes is None and not values and not regions:
        classes = _named_in(root)
    code = mask_code(classes, values, regions=regions, ignore=ignore)
    cut = _Cut(size, fit, AXES.index(axis), every, empty, channel, *_range(window, percentiles))
    reading = _Reading(root, code, cut, group, cache, workers or min(4, cores.available()))
    train = _read_set(reading, images, masks)
    test = _read_set(reading, test_images, test_masks) if test_images else None
    names = with_classes(code, [*train.labels, *(test.labels if test else ())], str(root))
    return with_validation(Dataset(train=train, test=test, classes=names), validation)


class _Cut(NamedTuple):
    """How volumes become slices."""

    size: int
    fit: str
    axis: int
    every: int
    empty: bool
    channel: int
    window: tuple[float, float] | None
    percentiles: tuple[float, float]


class _Reading(NamedTuple):
    """What both sets share."""

    root: Path
    code: MaskCode
    cut: _Cut
    group: str
    cache: str
    workers: int


class _Slices(NamedTuple):
    """Those of one volume."""

    pixels: NDArray[np.uint8]
    """uint8 [n, size, size, 2]: images and masks."""
    places: list[int]
    spacing: str


def _range(
    window: Sequence[float], percentiles: Sequence[float]
) -> tuple[tuple[float, float] | None, tuple[float, float]]:
    """Return the two ends of the window, None without one, and of the percentiles.

    Raises:
        ValueError: There are not two, or they do not rise.
    """
    for key, ends in (("window", window), ("percentiles", percentiles)):
        numbers = all(type(end) in (int, float) for end in ends)
        if (ends or key == "percentiles") and (len(ends) != 2 or not numbers or not ends[0] < ends[1]):
            raise ValueError(f"{key} must be [low, high] with low < high, not {list(ends)}")
    check_range(
        at_least=0, at_most=100, **{"percentiles[0]": percentiles[0], "percentiles[1]": percentiles[1]}
    )
    return (window[0], window[1]) if window else None, (percentiles[0], percentiles[1])


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
        meaning=("slices", *how.cut, *how.code.meaning),
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
        read = functools.partial(_slices, code=how.code, cut=how.cut)
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


def _slices(image: Path, mask: Path, code: MaskCode, cut: _Cut) -> _Slices:
    """Return the slices of one volume."""
    volume, affine = _load(image, cut.channel)
    labels, other = _load(mask, 0)
    if volume.shape != labels.shape or not np.allclose(affine, other, atol=1e-2):
        raise DataError(
            f"{mask}: it lies on another grid ({_shape(labels)}) than {image.name} ({_shape(volume)}); "
            "resample one of them"
        )
    if (whole := _whole(labels)) is None:
        raise DataError(
            f"{mask}: it holds other numbers than whole ones >= 0; save labels, not probabilities"
        )
    try:
        classes = code.decode(whole)
    except ValueError as error:
        raise DataError(f"{mask}: {error}") from error
    low, high = _ends(volume, cut, image)
    places = [place for place in range(0, volume.shape[cut.axis], cut.every)]
    if not cut.empty:
        places = [place for place in places if _shows(classes, place, cut.axis)]
    made = np.empty((len(places), cut.size, cut.size, 2), np.uint8)
    for number, place in enumerate(places):
        # Turned so that up is anterior in an axial slice, and superior in the others.
        # Views: take() would copy the whole volume for each slice.
        shades = _shades(np.moveaxis(volume, cut.axis, 0)[place], low, high)
        pair = map(np.rot90, (shades, np.moveaxis(classes, cut.axis, 0)[place]))
        for channel, plane in enumerate(pair):
            made[number, ..., channel] = _fitted(plane, cut, channel == 1, image)
    first, second = (side for side in range(3) if side != cut.axis)
    steps = np.sqrt((affine[:3, :3] ** 2).sum(0))
    spacing = " x ".join(f"{steps[side]:g}" for side in (second, first, cut.axis))
    return _Slices(made, places, spacing)


def _whole(labels: NDArray[Any]) -> NDArray[Any] | None:
    """Return labels as whole numbers, None where they are none or below 0."""
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            return None
        whole = np.round(labels)
        if (np.abs(labels - whole) > _NEARLY).any():
            return None
        labels = whole.astype(np.int64)
    return labels if labels.min() >= 0 else None


def _fitted(plane: NDArray[np.uint8], cut: _Cut, nearest: bool, image: Path) -> NDArray[np.uint8]:
    if cut.fit == "exact" and plane.shape != (cut.size, cut.size):
        raise DataError(f"{image}: its slices are {_shape(plane)}, not {cut.size} x {cut.size}; set data.fit")
    shown = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(fitted_to(shown, cut.size, cut.fit, nearest=nearest, fill=IGNORED if nearest else 0))


def _shows(classes: NDArray[np.uint8], place: int, axis: int) -> bool:
    """Return whether a slice shows more than the first class."""
    plane = np.moveaxis(classes, axis, 0)[place]
    return bool(((plane != 0) & (plane != IGNORED)).any())


def _ends(volume: NDArray[Any], cut: _Cut, image: Path) -> tuple[float, float]:
    """Return the values that become 0 and 255: a volume's window or its percentiles."""
    if not np.isfinite(volume).all():
        raise DataError(f"{image}: it holds NaN or infinity; save it without")
    # As it lies in memory: another order would be a copy.
    low, high = cut.window or np.percentile(volume.ravel(order="K"), cut.percentiles)
    return float(low), float(high)


def _shades(plane: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Return a plane as 0..255."""
    scaled = (plane.astype(np.float64) - low) / max(high - low, float(np.finfo(np.float32).tiny))
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)


def _load(file: Path, channel: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return a volume [x, y, z] as it is stored, in RAS+ orientation, and its affine.

    Raises:
        PluginError: nibabel is not installed.
        DataError: It cannot be read, is no volume, or has no such channel.
    """
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise PluginError(
            "[data] use = 'nifti' needs the package nibabel, which is not installed: "
            "pip install 'fedvision[medical]'"
        ) from error
    try:
        found: Any = nibabel.as_closest_canonical(nibabel.load(file))  # type: ignore[no-untyped-call]
        values = np.asanyarray(found.dataobj)
        if values.dtype.kind not in "uif":
            raise TypeError(f"its values are of the type {values.dtype}")
        affine = np.asarray(found.affine, np.float64)
    except Exception as error:  # a broken file can raise almost anything
        raise DataError(f"{file}: this volume cannot be read: {first_line(error)}; save it again") from error
    if values.ndim == 4 and channel < values.shape[3]:
        values = values[..., channel]
    elif values.ndim == 3 and channel:
        raise DataError(f"{file}: it has one channel, and data.channel = {channel}; set it to 0")
    if values.ndim != 3 or not values.size:
        raise DataError(
            f"{file}: it is {_shape(values)}, no volume of three axes; correct it or data.channel"
        )
    return values, affine


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape))


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
