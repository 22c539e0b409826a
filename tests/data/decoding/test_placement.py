"""Boxes move exactly as the decoder moves pixels: orientation, reduced JPEGs, fits; and so do maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedvision.data.boxes import Placement
from fedvision.data.decoding import pixels
from fedvision.data.decoding.decode import Decoding
from fedvision.data.decoding.placement import locate, locate_all, sample

_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What makes the file's pixels of the upright image, for each EXIF orientation."""


def written(path: Path, upright: Image.Image, orientation: int) -> Path:
    """Save an image so that a viewer who obeys EXIF sees it upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(_BACK[orientation]) if orientation > 1 else upright
    stored.save(path, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return path


def white(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("L", (width, height))
    image.paste(255, box)
    return image


def extent(values: NDArray[np.uint8]) -> tuple[float, float]:
    """Return centre and width of what is white along an axis: a filter blurs it and changes neither."""
    profile = values / values.max()
    return float(profile @ (np.arange(len(values)) + 0.5) / profile.sum()), float(profile.sum())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(
    ("sides", "size", "fit"),
    [
        ((101, 67), 16, "pad"),
        ((67, 101), 16, "stretch"),
        ((331, 203), 20, "pad"),
        ((331, 203), 20, "crop"),
        ((40, 40), 64, "pad"),
        ((31, 17), 64, "stretch"),
    ],
)
def test_a_box_lies_where_its_pixels_are(
    tmp_path: Path, orientation: int, suffix: str, sides: tuple[int, int], size: int, fit: str
) -> None:
    width, height = sides
    box = (int(width * 0.3), int(height * 0.25), int(width * 0.62), int(height * 0.7))
    path = written(tmp_path / f"a.{suffix}", white(width, height, box), orientation)
    how = Decoding(size=size, channels=1, fit=fit)
    found = locate(path, how)
    assert (found.placement.width, found.placement.height) == sides
    assert (found.turned, found.oriented) == (orientation > 4, orientation > 1)
    image = pixels.read(path, size=size, channels=1, fit=fit).pixels[..., 0]
    for axis, profile in enumerate((image.max(axis=0), image.max(axis=1))):
        scale, shift = found.placement.scale[axis], found.placement.shift[axis]
        centre, length = extent(profile)
        assert centre == pytest.approx((box[axis] + box[axis + 2]) / 2 * scale + shift, abs=0.06)
        assert length == pytest.approx((box[axis + 2] - box[axis]) * scale, abs=0.12)


def test_by_hand(tmp_path: Path) -> None:
    """40 x 20 into 20: halved, and five rows of black above."""
    Image.new("L", (40, 20)).save(tmp_path / "a.png")
    place = locate(tmp_path / "a.png", Decoding(size=20, fit="pad")).placement
    assert place == Placement(width=40, height=20, scale=(0.5, 0.5), shift=(0.0, 5.0))
    Image.new("L", (20, 20)).save(tmp_path / "b.png")
    assert locate(tmp_path / "b.png", Decoding(size=20, fit="exact")).placement == Placement(
        width=20, height=20
    )


def test_an_orientation_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    """EXIF may stand in the last chunk: the decoder obeys it there as well."""
    written(tmp_path / "a.png", white(8, 4, (0, 0, 2, 2)), 6)
    raw = (tmp_path / "a.png").read_bytes()
    start = raw.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(raw[start : start + 4], "big")
    cut = raw[:start] + raw[end:]
    behind = cut.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(cut[:behind] + raw[start:end] + cut[behind:])
    how = Decoding(size=8, fit="pad")
    assert locate(tmp_path / "b.png", how) == locate(tmp_path / "a.png", how)
    assert locate(tmp_path / "b.png", how).turned


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    found = locate_all(tmp_path, ["a.png", "b.png", "c.png"], Decoding(size=4, fit="pad"))
    assert [isinstance(one, str) for one in found] == [True, False, True]


def test_a_map_is_sampled_under_the_centres_of_pixels() -> None:
    values = np.arange(8, dtype=np.uint8).reshape(2, 4)
    place = Placement(width=4, height=2, scale=(1.0, 1.0), shift=(0.0, 1.0))
    assert sample(values, place, 4, 255).tolist() == [[255] * 4, [0, 1, 2, 3], [4, 5, 6, 7], [255] * 4]
    half = Placement(width=4, height=2, scale=(0.5, 1.0))
    assert sample(values, half, 2, 255).tolist() == [[1, 3], [5, 7]]
