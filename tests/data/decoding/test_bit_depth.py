"""Pixels become what they mean, whatever value is white in their file; an unknown range is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedvision.data.decoding import pixels
from tests.data.tiffs import BITS, FORMAT, MAX_SAMPLE, PHOTOMETRIC, S_MAX_SAMPLE, tiff_of, write_tiff

TEN = np.array([[0, 341], [682, 1023]], np.uint16)
"""10 bits in 16: black, a third, two thirds, white."""
THIRDS = [0, 85, 170, 255]


def read(path: Path, white: float = 0.0, channels: int = 1) -> list[int]:
    found = pixels.read(path, size=2, channels=channels, fit="crop", white=white)
    return [int(value) for value in found.pixels.ravel()]


def png(path: Path, values: NDArray[np.generic], significant: int = 0) -> Path:
    """Save a PNG, optionally with an sBIT chunk before its pixels."""
    Image.fromarray(values).save(path)
    data, channels = path.read_bytes(), values.shape[2] if values.ndim == 3 else 1
    body = b"sBIT" + bytes([significant] * channels)
    chunk = struct.pack(">I", channels) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:33] + chunk + data[33:] if significant else data)
    return path


@pytest.mark.parametrize("bits", [10, 12, 14, 15])
def test_sbit_of_pixels_that_were_not_scaled(tmp_path: Path, bits: int) -> None:
    top = 2**bits - 1
    values = np.array([[0, top // 3], [2 * top // 3, top]], np.uint16)
    assert read(png(tmp_path / "a.png", values, bits)) == THIRDS


def test_sbit_of_pixels_scaled_by_the_specification(tmp_path: Path) -> None:
    """A dark picture: 0, 3, 6 and 9 of 1023, shifted up, with and without the repeated bits."""
    shifted = np.array([[0, 3], [6, 9]], np.uint16) << 6
    repeated = np.round(np.array([[0, 3], [6, 9]]) * 65535 / 1023).astype(np.uint16)
    for values in (shifted, repeated):
        assert read(png(tmp_path / "a.png", values, 10)) == [0, 1, 1, 2]


def test_sbit_of_8_bit_gray_and_colour(tmp_path: Path) -> None:
    four = np.array([[0, 5], [10, 15]], np.uint8)
    assert read(png(tmp_path / "a.png", four, 4)) == THIRDS
    colour = np.stack([four] * 3, axis=-1)
    assert read(png(tmp_path / "a.png", colour, 4), channels=3) == list(np.repeat(THIRDS, 3))
    assert read(png(tmp_path / "a.png", four * 17, 4)) == THIRDS


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tag", [MAX_SAMPLE, S_MAX_SAMPLE])
def test_a_tiff_tag_of_a_bit_depth_is_the_range(tmp_path: Path, order: str, tag: int) -> None:
    assert read(tiff_of(tmp_path / "a.tif", TEN, {tag: (1023,)}, order)) == THIRDS
    # The maximum of one picture is no range, and a range that pixels exceed is none either.
    assert read(tiff_of(tmp_path / "a.tif", TEN, {tag: (1500,)}, order)) == [0, 1, 3, 4]
    assert read(tiff_of(tmp_path / "a.tif", TEN, {tag: (511,)}, order)) == [0, 1, 3, 4]


def test_twelve_bits_a_sample(tmp_path: Path) -> None:
    """Two samples of 12 bits lie in three bytes: 0 and 1365, 2730 and 4095."""
    data = bytes([0x00, 0x05, 0x55, 0xAA, 0xAF, 0xFF])
    assert read(write_tiff(tmp_path / "a.tif", data, 2, 2, {BITS: (12,)})) == THIRDS


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_white_is_zero_by_depth_and_byte_order(
    tmp_path: Path, order: str, dtype: type[np.unsignedinteger], photometric: int
) -> None:
    top = np.iinfo(dtype).max
    values = np.array([[0, top // 3], [2 * (top // 3), top]], dtype)
    path = tiff_of(tmp_path / "a.tif", values, {PHOTOMETRIC: (photometric,)}, order)
    if (order, dtype, photometric) == (">", np.uint16, 0):
        with pytest.raises(OSError, match="cannot identify"):  # Pillow has no such kind.
            read(path)
        return
    assert read(path) == (THIRDS if photometric else THIRDS[::-1])


def test_white_is_zero_of_ten_bits(tmp_path: Path) -> None:
    path = tiff_of(tmp_path / "a.tif", TEN, {PHOTOMETRIC: (0,)})
    assert read(path, white=1023) == THIRDS[::-1]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("dtype", "kind"), [(np.int16, 2), (np.int32, 2), (np.uint32, 1), (np.float32, 3)])
def test_types_without_a_range_need_one(
    tmp_path: Path, order: str, dtype: type[np.generic], kind: int
) -> None:
    path = tiff_of(tmp_path / "a.tif", (TEN * 4).astype(dtype), {FORMAT: (kind,)}, order)
    if (order, dtype) == (">", np.uint32):
        with pytest.raises(OSError, match="cannot identify"):  # Pillow has no such kind.
            read(path)
        return
    with pytest.raises(ValueError, match=r"no agreed range; say which value is white with data\.range"):
        read(path)
    assert read(path, white=4092) == THIRDS


def test_pixels_above_the_range_and_below_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its pixels go from 0 to 1023, outside 0 to 511"):
        read(png(tmp_path / "a.png", TEN), white=511)
    path = tiff_of(tmp_path / "b.tif", TEN.astype(np.int16) - 5, {FORMAT: (2,)})
    with pytest.raises(ValueError, match="its pixels go from -5 to 1018"):
        read(path, white=1023)
    path = tiff_of(tmp_path / "c.tif", np.full((2, 2), np.nan, np.float32), {FORMAT: (3,)})
    with pytest.raises(ValueError, match="some pixels are no numbers"):
        read(path, white=1)
    with pytest.raises(ValueError, match="a pixel is 200, above range = 15"):
        read(png(tmp_path / "d.png", np.full((2, 2), 200, np.uint8)), white=15)


def test_a_range_of_8_bits(tmp_path: Path) -> None:
    four = np.array([[0, 5], [10, 15]], np.uint8)
    assert read(png(tmp_path / "a.png", four), white=15) == THIRDS
    # A range above 8 bits is for deeper files: a JPEG beside them keeps its own.
    assert read(png(tmp_path / "a.png", four * 17), white=1023) == THIRDS


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("top", [1023, 4095, 65535])
def test_a_pgm_names_its_range(tmp_path: Path, top: int, plain: bool) -> None:
    values = np.array([0, top // 3, 2 * (top // 3), top], np.uint16)
    body = " ".join(map(str, values)).encode() if plain else values.astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P%d 2 2 %d\n" % (2 if plain else 5, top) + body)
    assert read(tmp_path / "a.pgm") == THIRDS
    assert read(tmp_path / "a.pgm", white=2 * top)[-1] == 128


def test_colour_of_16_bits_is_of_full_range_or_refused(tmp_path: Path) -> None:
    full = (TEN.astype(np.float64) * 65535 / 1023).astype(np.uint16)
    for order in "<>":
        three = np.stack([full] * 3, axis=-1)
        path = tiff_of(tmp_path / "a.tif", three, {PHOTOMETRIC: (2,)}, order)
        assert read(path, channels=3) == list(np.repeat(THIRDS, 3))
        found = pixels.read(path, size=2, channels=3, fit="crop")
        assert found.depth
        assert (found.depth.white, found.depth.highest) == (65535, 65535)
        with pytest.raises(ValueError, match=r"colour of 16 bits cannot be brought from 0\.\.1023"):
            read(path, white=1023)
        dark = tiff_of(
            tmp_path / "a.tif", np.stack([TEN] * 3, -1), {PHOTOMETRIC: (2,), MAX_SAMPLE: (1023,) * 3}
        )
        with pytest.raises(ValueError, match=r"colour of 16 bits cannot be brought from 0\.\.1023"):
            read(dark)


def test_a_clear_value_of_16_bit_gray_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 7], [0, 65535]], np.uint16)).save(tmp_path / "a.png", transparency=7)
    assert read(tmp_path / "a.png") == [0, 255, 0, 255]
