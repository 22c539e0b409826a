"""Images to be predicted: their order and names, how they are cut into batches, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvision.data.decoding.process_pool import PixelFormat
from fedvision.data.sources.unlabelled import UnlabelledImages
from fedvision.errors import DataError
from tests.data.pictures import save, shades, spoil

GRAY = PixelFormat(4, 1, "crop")
SHAPE = (4, 4, 1)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_files_folders_and_arrays_come_in_the_order_of_the_paths(tmp_path: Path, batch_size: int) -> None:
    for number in range(40):  # more than a decoder takes at once
        save(tmp_path / f"folder/{number // 10}/{number:02}.png", number)
    spoil(tmp_path / "folder/1/bad.png")
    save(tmp_path / "one.bmp", 200)
    np.savez(
        tmp_path / "some.npz",
        test_images=np.full((3, 4, 4), 100, np.uint8),
        labels=np.zeros(3),
        images=np.full((1, 4, 4, 1), 101, np.uint8),
    )
    found = UnlabelledImages(
        [tmp_path / "folder", str(tmp_path / "some.npz"), tmp_path / "one.bmp", tmp_path / "nope.png"],
        SHAPE,
        GRAY,
        batch_size=batch_size,
    )
    batches = list(found)
    names = [name.removeprefix(f"{tmp_path}/") for batch in batches for name in batch.names]
    assert names == [
        *(f"folder/{number // 10}/{number:02}.png" for number in range(40)),
        *(f"some.npz:test_images[{number}]" for number in range(3)),
        "some.npz:images[0]",
        "one.bmp",
    ]
    assert [shade for batch in batches for shade in shades(batch.images)] == [
        *range(40), 100, 100, 100, 101, 200
    ]  # fmt: skip
    assert all(len(batch.images) <= batch_size for batch in batches)
    assert [len(batch.names) for batch in batches][: 40 // batch_size] == [batch_size] * (40 // batch_size)
    assert {name.removeprefix(f"{tmp_path}/"): why for name, why in found.unreadable.items()} == {
        "folder/1/bad.png": "no known image format",
        "nope.png": "No such file or directory",
    }


def test_an_array_in_memory_is_numbered_and_not_written_to() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    images.setflags(write=False)
    batches = list(UnlabelledImages(images, SHAPE, None, batch_size=2))
    assert [batch.names for batch in batches] == [["0", "1"], ["2", "3"], ["4"]]
    assert [shade for batch in batches for shade in shades(batch.images)] == [0, 1, 2, 3, 4]
    assert all(batch.images.flags.writeable for batch in batches)


def test_an_inferred_range_is_a_notice(tmp_path: Path) -> None:
    dim = np.full((4, 4), 1000, np.uint16)
    Image.fromarray(dim).save(tmp_path / "ten-bits.png")
    (tmp_path / "x.gz").write_bytes(b"")
    found = UnlabelledImages([tmp_path], SHAPE, GRAY, batch_size=8)
    assert [batch.names for batch in found] == [[f"{tmp_path}/ten-bits.png"]]
    assert found.notices[0] == f"{tmp_path}: 1 files are no images by their suffix"
    assert "no pixel of them is above 1,000 of 65,535" in found.notices[1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"images": np.zeros((2, 4, 4, 3), np.uint8)},
            "images is uint8 [2, 4, 4, 3], and the model takes uint8",
        ),
        ({"images": np.zeros((2, 4, 5), np.uint8)}, "images is uint8 [2, 4, 5]"),
        ({"images": np.zeros((2, 4, 4))}, "images is float64 [2, 4, 4]"),
        (
            {"pictures": np.zeros((2, 4, 4), np.uint8)},
            "it holds pictures; save the images as an array called",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    content: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "some.npz", **content)
    with pytest.raises(DataError) as caught:
        UnlabelledImages([tmp_path / "some.npz"], SHAPE, GRAY, batch_size=8)
    assert str(caught.value).startswith(f"{tmp_path}/some.npz")
    assert sentence in str(caught.value)


def test_places_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there are no images in this folder"):
        UnlabelledImages([tmp_path / "empty"], SHAPE, GRAY, batch_size=8)
    picture = save(tmp_path / "one.png")
    with pytest.raises(DataError, match=r"images of 4 x 5 with 1 channel\(s\), which no file is brought to"):
        UnlabelledImages([picture], (4, 5, 1), None, batch_size=8)
    with pytest.raises(DataError, match=r"nope.npz: there is no such file"):
        UnlabelledImages([tmp_path / "nope.npz"], (4, 5, 1), None, batch_size=8)
