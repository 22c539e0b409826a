"""A NIfTI volume and its labels -> slices: along which axis, which of them, and what is black and white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedvision.data.decoding.pixels import FITS, fitted_to
from fedvision.data.masks import IGNORED
from fedvision.data.sources.mask_code import MaskCode
from fedvision.errors import DataError, PluginError, first_line
from fedvision.ranges import check_range

AXES = ("sagittal", "coronal", "axial")
"""Which axis of a volume in RAS+ orientation is cut along: x, y or z."""
_NEARLY = 1e-3
"""How far labels that are stored as fractions may be from whole numbers."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How volumes become slices.

    Raises:
        ValueError: A value is out of range.
    """

    size: int
    """Side of the square slices in pixels; spacing is not evened out."""
    fit: str = "pad"
    """``"pad"`` (bars, which are ignored), ``"crop"`` or ``"stretch"``; ``"exact"`` needs slices of
    ``size``."""
    axis: str = "axial"
    """Along which volumes are cut: ``"axial"``, ``"coronal"`` or ``"sagittal"``."""
    every: int = 1
    """Takes every n-th slice."""
    empty: bool = True
    """Whether slices are taken whose mask holds the first class alone."""
    channel: int = 0
    """Which one, from 0, of volumes with several (a fourth axis)."""
    window: Sequence[float] = ()
    """[low, high] in the volume's own unit, such as Hounsfield's, which become 0 and 255."""
    percentiles: Sequence[float] = (0.5, 99.5)
    """Without a window, the percentiles of each volume that become 0 and 255."""

    def __post_init__(self) -> None:
        check_range(at_least=1, size=self.size, every=self.every)
        check_range(at_least=0, channel=self.channel)
        for key, given, known in (("axis", self.axis, AXES), ("fit", self.fit, FITS)):
            if given not in known:
                raise ValueError(f"{key} must be one of {', '.join(known)}, not {given!r}")
        for key, ends in (("window", self.window), ("percentiles", self.percentiles)):
            numbers = all(type(end) in (int, float) for end in ends)
            if (ends or key == "percentiles") and (len(ends) != 2 or not numbers or not ends[0] < ends[1]):
                raise ValueError(f"{key} must be [low, high] with low < high, not {list(ends)}")
        low, high = self.percentiles
        check_range(at_least=0, at_most=100, **{"percentiles[0]": low, "percentiles[1]": high})

    @property
    def along(self) -> int:
        """Number of the axis."""
        return AXES.index(self.axis)

    @property
    def meaning(self) -> tuple[object, ...]:
        """What decoding depends on, the same in every process."""
        return tuple(tuple(v) if isinstance(v, list | tuple) else v for v in vars(self).values())


class Slices(NamedTuple):
    """Those of one volume."""

    pixels: NDArray[np.uint8]
    """uint8 [n, size, size, 2]: images and masks."""
    places: list[int]
    spacing: str


def slices_of(image: Path, mask: Path, code: MaskCode, cut: Cut) -> Slices:
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
    places = [place for place in range(0, volume.shape[cut.along], cut.every)]
    if not cut.empty:
        places = [place for place in places if _shows(classes, place, cut.along)]
    made = np.empty((len(places), cut.size, cut.size, 2), np.uint8)
    for number, place in enumerate(places):
        # Turned so that up is anterior in an axial slice, and superior in the others.
        # Views: take() would copy the whole volume for each slice.
        shades = _shades(np.moveaxis(volume, cut.along, 0)[place], low, high)
        pair = map(np.rot90, (shades, np.moveaxis(classes, cut.along, 0)[place]))
        for channel, plane in enumerate(pair):
            made[number, ..., channel] = _fitted(plane, cut, channel == 1, image)
    first, second = (side for side in range(3) if side != cut.along)
    steps = np.sqrt((affine[:3, :3] ** 2).sum(0))
    spacing = " x ".join(f"{steps[side]:g}" for side in (second, first, cut.along))
    return Slices(made, places, spacing)


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


def _fitted(plane: NDArray[np.uint8], cut: Cut, nearest: bool, image: Path) -> NDArray[np.uint8]:
    if cut.fit == "exact" and plane.shape != (cut.size, cut.size):
        raise DataError(f"{image}: its slices are {_shape(plane)}, not {cut.size} x {cut.size}; set data.fit")
    shown = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(fitted_to(shown, cut.size, cut.fit, nearest=nearest, fill=IGNORED if nearest else 0))


def _shows(classes: NDArray[np.uint8], place: int, axis: int) -> bool:
    """Return whether a slice shows more than the first class."""
    plane = np.moveaxis(classes, axis, 0)[place]
    return bool(((plane != 0) & (plane != IGNORED)).any())


def _ends(volume: NDArray[Any], cut: Cut, image: Path) -> tuple[float, float]:
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
