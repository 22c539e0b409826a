"""Tiles: where they lie, what they show of boxes, and that each is an image of its source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedvision.data.sources.annotations import tiles
from fedvision.data.sources.annotations.coco import coco
from fedvision.data.sources.annotations.tiles import Tile, boxes_in, check_tiles, tiles_of
from fedvision.errors import DataError
from tests.data.annotated import box, coco_folder, document, image, picture, rows_of


def test_the_last_tile_ends_at_the_edge() -> None:
    assert tiles_of(10, 4, 4, 0) == [Tile(0, 0, 4, 4), Tile(4, 0, 8, 4), Tile(6, 0, 10, 4)]
    assert tiles_of(8, 3, 4, 2) == [Tile(0, 0, 4, 3), Tile(2, 0, 6, 3), Tile(4, 0, 8, 3)]
    assert tiles_of(3, 3, 4, 0) == [Tile(0, 0, 3, 3)]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.data())
def test_tiles_cover_an_image(width: int, height: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    seen = np.zeros((height, width), int)
    found = tiles_of(width, height, tile, overlap)
    for one in found:
        assert (one.right - one.left, one.bottom - one.top) == (min(tile, width), min(tile, height))
        assert 0 <= one.left < one.right <= width
        assert 0 <= one.top < one.bottom <= height
        seen[one.top : one.bottom, one.left : one.right] += 1
    assert seen.min() == 1
    assert len(set(found)) == len(found)


def test_half_of_a_box_is_a_box_and_less_a_crowd() -> None:
    boxes = np.array(
        [
            [0, 2, 1, 4, 2, 6, 0],  # half of it left of x = 4
            [1, 3, 1, 4, 2, 8, 0],  # a quarter
            [1, 4, 0, 2, 2, 4, 0],  # nothing
        ],
        float,
    )
    found, numbers = boxes_in(boxes, Tile(0, 0, 4, 4))
    assert numbers == [0, 1]
    assert found.tolist() == [[0, 2, 1, 2, 2, 3, 0], [1, 3, 1, 1, 2, 2, 1]]
    right, numbers = boxes_in(boxes, Tile(4, 1, 8, 5))
    assert numbers == [0, 1, 2]
    assert right.tolist() == [[0, 0, 0, 2, 2, 3, 0], [1, 0, 0, 3, 2, 6, 0], [1, 0, 0, 2, 1, 2, 0]]


def test_each_tile_is_an_image_of_its_source(tmp_path: Path) -> None:
    for number in (1, 2):
        striped = Image.new("L", (12, 8))
        striped.paste(200, (8, 0, 12, 8))
        striped.save(tmp_path / f"{number}.png")
    content = document([image(n, width=12, camera="c") for n in (1, 2)], [box(1, 1, [9, 5, 2, 2])])
    path, keys = coco_folder(tmp_path, content), {"size": 4, "channels": 1, "workers": 1, "tile": 4}
    dataset = coco(path=str(path), cache=str(tmp_path / "c"), validation=0.5, **keys)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (6, 6)
    assert dataset.train.group == "source"
    assert len(set(dataset.train.columns["source"])) == len(set(dataset.test.columns["source"])) == 1
    part = dataset.train if "1.png" in dataset.train.columns["source"] else dataset.test
    assert {name: rows for name, rows in rows_of(part).items() if rows} == {
        "1.png/00005.png": [[0, 1, 1, 2, 2, 4, 0]]
    }
    lit = part.images[:, 0, 0, 0] == 200
    assert part.columns["left"][lit].tolist() == ["8", "8"]
    assert set(part.columns["camera"]) == {"c"}
    assert dataset.notices == ("2 images cut into 12 tiles of 4 pixels, overlap 0",)


def test_an_overlap_is_below_the_tile() -> None:
    for tile, overlap in ((4, 4), (0, 1)):
        with pytest.raises(ValueError, match=f"^overlap = {overlap} must be below tile = {tile}"):
            check_tiles(tile, overlap)


def test_an_unreadable_image_gives_no_tiles(tmp_path: Path) -> None:
    path = coco_folder(tmp_path, document([image(1), image(2)], [box(1, 1, [0, 0, 2, 2])]))
    (tmp_path / "1.png").write_bytes(b"no image")
    keys = {"size": 4, "channels": 1, "workers": 1, "tile": 4, "cache": str(tmp_path / "c")}
    dataset = coco(path=str(path), **keys)
    assert rows_of(dataset.train) == {f"2.png/0000{number}.png": [] for number in range(4)}
    assert dataset.notices[0] == "1 image files cannot be read and give no tiles, such as 1.png"
    broken = (tmp_path / "2.png").read_bytes()[:44]
    (tmp_path / "2.png").write_bytes(broken)
    with pytest.raises(
        DataError, match=r"2.png: it cannot be read and cut into tiles: .*; repair it or remove"
    ):
        coco(path=str(path), **keys)


def test_tiles_are_cut_once_and_again_where_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = coco_folder(tmp_path, document([image(1)], []))
    keys = {"size": 4, "channels": 1, "workers": 1, "tile": 4, "cache": str(tmp_path / "c")}
    first = coco(path=str(path), **keys)
    with monkeypatch.context() as patch:
        patch.setattr(tiles, "_write", lambda *_: pytest.fail("cut again"))
        assert np.array_equal(coco(path=str(path), **keys).train.images, first.train.images)
    picture(tmp_path / "1.png", shade=99)
    assert coco(path=str(path), **keys).train.images.max() == 99
    assert sorted(one.name[:8] == "partial-" for one in (tmp_path / "c/tiles").iterdir()) == [False, False]


def test_tiles_hold_what_the_decoder_makes_of_a_file(tmp_path: Path) -> None:
    """Twelve bits in sixteen, and an image that lies on its side."""
    deep = np.zeros((8, 4), np.uint16)
    deep[:4] = 4095
    Image.fromarray(deep).save(tmp_path / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.new("L", (8, 4))
    lying.paste(255, (0, 0, 4, 4))
    lying.save(tmp_path / "2.jpg", exif=exif, quality=100)
    keys = {"size": 4, "channels": 1, "workers": 1, "tile": 4, "cache": str(tmp_path / "c")}
    path = coco_folder(tmp_path, document([image(1, width=4)], []))
    bright = coco(path=str(path), range=4095.0, **keys)
    assert sorted(int(one.mean()) for one in bright.train.images) == [0, 255]
    path = coco_folder(tmp_path, document([image(2, file_name="2.jpg", width=4)], []))
    turned = coco(path=str(path), **keys).train
    shades = {name: int(one.mean()) for name, one in zip(turned.names, turned.images, strict=True)}
    assert shades == {"2.jpg/00000.png": 255, "2.jpg/00001.png": 0}
    Image.fromarray((deep // 16).astype(np.uint16)).save(tmp_path / "3.png")
    path = coco_folder(tmp_path, document([image(3, width=4)], []))
    with pytest.raises(DataError, match=r"no pixel of them is above 255 of 65,535.*set data.range"):
        coco(path=str(path), **keys)
    assert [one.name[:8] for one in (tmp_path / "c/tiles").iterdir() if one.name.startswith("partial-")] == []
