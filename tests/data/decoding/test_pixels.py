"""Every format that people keep images in becomes the uint8 square that its pixels mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedvision.data.decoding import pixels

RED, WHITE = (255, 0, 0), (255, 255, 255)


def read(path: Path, size: int = 4, channels: int = 3, fit: str = "crop") -> NDArray[np.uint8]:
    return pixels.read(path, size=size, channels=channels, fit=fit).pixels


def quarters(width: int = 64, height: int = 64) -> Image.Image:
    """Red, green / blue, white: every rotation and mirroring of it looks different."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("lime", (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    image.paste("white", (width // 2, height // 2, width, height))
    return image


def corners(path: Path, channels: int = 3) -> NDArray[np.int64]:
    """Read as 8 x 8 and return the middle of each quarter, where the filter sees no other."""
    return read(path, size=8, channels=channels)[1::5, 1::5].astype(np.int64)


CORNERS = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]])


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp", "ppm", "jpg", "gif"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    # 4:4:4, or JPEG smears colour over the edge between the quarters.
    options = {
        "webp": {"lossless": True},
        "jpg": {"quality": 100, "subsampling": 0},
    }
    quarters().save(tmp_path / f"a.{suffix}", **options.get(suffix, {}))
    image = read(tmp_path / f"a.{suffix}")
    assert image.dtype == np.uint8
    assert image.shape == (4, 4, 3)
    np.testing.assert_allclose(corners(tmp_path / f"a.{suffix}"), CORNERS, atol=2)


def test_the_format_is_that_of_the_content_not_of_the_suffix(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(corners(tmp_path / "a.jpg"), CORNERS)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "CMYK", "LA", "RGBA", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_have_the_configured_channels(tmp_path: Path, mode: str, channels: int) -> None:
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "a.tiff")
    image = read(tmp_path / "a.tiff", channels=channels)
    assert image.shape == (4, 4, channels)
    assert image.min() >= 254


def test_gray_weighs_colours_by_itu_r_601(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    gray = corners(tmp_path / "a.png", channels=1)
    np.testing.assert_allclose(gray[..., 0], CORNERS @ [0.299, 0.587, 0.114], atol=1)


def test_gray_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 77).save(tmp_path / "a.png")
    assert np.all(read(tmp_path / "a.png") == 77)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_gray_is_scaled_and_not_clipped(tmp_path: Path, suffix: str, channels: int) -> None:
    values = np.array([[0, 400], [32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read(tmp_path / f"a.{suffix}", size=2, channels=channels)
    expected = np.round(values / 257)[..., None].repeat(channels, axis=-1)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    "values",
    [
        np.full((2, 2), 0.5, np.float32),
        np.full((2, 2), 70000, np.int32),
        np.full((2, 2), -1, np.int32),
    ],
)
def test_pixels_without_an_agreed_range_are_refused(tmp_path: Path, values: NDArray[np.float32]) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(
        ValueError, match=r"no agreed range; say .* data\.range, or save it with 8 or 16 bits"
    ):
        read(tmp_path / "a.tiff", size=2)


def rgba() -> Image.Image:
    return Image.new("RGBA", (8, 8), (255, 0, 0, 128))


def gray_alpha() -> Image.Image:
    return Image.new("LA", (8, 8), (0, 128))


def palette_with_clear_entry() -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.info["transparency"] = 1
    return image


def palette_with_alphas() -> Image.Image:
    image = palette_with_clear_entry()
    image.info["transparency"] = bytes([255, 128])
    return image


def clear_colour() -> Image.Image:
    image = Image.new("RGB", (8, 8), RED)
    image.info["transparency"] = RED
    return image


def clear_gray() -> Image.Image:
    image = Image.new("L", (8, 8), 5)
    image.info["transparency"] = 5
    return image


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (rgba, (255, 127, 127)),
        (gray_alpha, (127, 127, 127)),
        (palette_with_clear_entry, WHITE),
        (palette_with_alphas, (255, 127, 127)),
        (clear_colour, WHITE),
        (clear_gray, WHITE),
    ],
)
def test_transparency_is_laid_over_white(
    tmp_path: Path, make: Callable[[], Image.Image], seen: tuple[int, int, int]
) -> None:
    image = make()
    # Pillow writes a palette's alphas only on request.
    image.save(
        tmp_path / "a.png",
        **({"transparency": image.info["transparency"]} if "transparency" in image.info else {}),
    )
    np.testing.assert_allclose(read(tmp_path / "a.png")[0, 0].astype(int), seen, atol=1)


def test_cmyk_is_ink_and_not_light(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(read(tmp_path / "a.jpg")[0, 0].astype(int), RED, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_exif_orientation_is_done(tmp_path: Path, orientation: int, suffix: str) -> None:
    # The file holds what a camera saves that was held so that EXIF must turn it to get the quarters back.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quarters() if orientation == 1 else quarters().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **({"subsampling": 0} if suffix == "jpg" else {}))
    np.testing.assert_allclose(corners(tmp_path / f"a.{suffix}"), CORNERS, atol=4)


def test_an_exact_size_is_taken_as_it_is_and_another_refused(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(drawn).save(tmp_path / "small.png")
    assert np.array_equal(read(tmp_path / "small.png", fit="exact"), drawn)
    Image.new("RGB", (16, 8)).save(tmp_path / "large.jpg")
    with pytest.raises(ValueError, match="it has 16 x 8 pixels, not 4 x 4"):
        read(tmp_path / "large.jpg", fit="exact")


def stripes() -> Image.Image:
    """40 x 20: black, the white square in the middle, black."""
    image = Image.new("RGB", (40, 20))
    image.paste("white", (10, 0, 30, 20))
    return image


def test_crop_keeps_the_centre_of_the_longer_side(tmp_path: Path) -> None:
    stripes().save(tmp_path / "wide.png")
    stripes().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.png")
    # The filter sees a little of the black beside the square, as it would if the whole image were shrunk.
    assert np.all(read(tmp_path / "wide.png")[:, 1:-1] == 255)
    assert np.all(read(tmp_path / "tall.png")[1:-1] == 255)
    assert np.all(read(tmp_path / "wide.png") > 200)


def test_stretch_keeps_everything_and_changes_the_aspect(tmp_path: Path) -> None:
    stripes().save(tmp_path / "a.png")
    row = read(tmp_path / "a.png", size=20, fit="stretch")[10, :, 0]
    assert row[0] == row[-1] == 0
    assert 9 <= np.count_nonzero(row > 127) <= 11


def test_pad_keeps_the_aspect_between_black_bars(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "white").save(tmp_path / "a.png")
    image = read(tmp_path / "a.png", size=8, fit="pad")
    assert np.all(image[2:6] == 255)
    assert np.all(image[:2] == 0)
    assert np.all(image[6:] == 0)


def test_pad_keeps_at_least_one_pixel_of_a_line(tmp_path: Path) -> None:
    Image.new("L", (300, 1), 255).save(tmp_path / "a.png")
    assert np.any(read(tmp_path / "a.png", fit="pad"))


def test_shrinking_averages_and_does_not_skip(tmp_path: Path) -> None:
    # A chessboard of single pixels is gray from afar; a filter that skips would see black or white.
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    assert np.all(np.abs(read(tmp_path / "a.png").astype(int) - 127) <= 2)


def test_a_jpeg_decoded_at_a_fraction_is_what_the_full_one_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    coarse.resize((512, 512), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    fast, full = read(tmp_path / "a.jpg", size=64), read(tmp_path / "a.png", size=64)
    # Measured 3 on this harsh noise; with as many pixels as wanted, and none to average over, 12.
    assert np.abs(fast.astype(int) - full).mean() < 4


def test_programs_and_other_formats_are_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    with pytest.raises(Image.UnidentifiedImageError):
        read(tmp_path / "a.eps")


@pytest.mark.parametrize("suffix", ["tiff", "gif", "png", "webp"])
def test_a_file_of_several_pictures_of_one_size_is_refused(tmp_path: Path, suffix: str) -> None:
    """Slices of a volume, frames of a film: the first one stood for all."""
    path = tmp_path / f"a.{suffix}"
    quarters().save(path, save_all=True, append_images=[quarters().rotate(90 * turn) for turn in (1, 2)])
    with pytest.raises(ValueError, match=r"it holds \d pictures of one size, such as slices or frames"):
        read(path)
    with pytest.raises(ValueError, match="pictures of one size"):
        pixels.whole(path, channels=3)


@pytest.mark.parametrize("kind", ["MPO", "TIFF"])
def test_a_second_picture_that_is_a_preview_is_of_no_matter(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.img"
    quarters().save(path, kind, save_all=True, append_images=[quarters(16, 16).rotate(90)])
    np.testing.assert_allclose(corners(path), CORNERS, atol=3)
