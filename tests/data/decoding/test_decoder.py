"""One decoder: its answers, its protocol, and that no file can bring it down."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvision.data.decoding.decoder import decode_chunk, serve
from tests.data.pictures import save, shades, spoil


def test_unreadable_files_leave_no_gap(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    spoil(tmp_path / "b.png")
    save(tmp_path / "c.png", 3)
    reasons, images = decode_chunk(tmp_path, ["a.png", "b.png", "c.png"], size=4, channels=1, fit="crop")
    assert reasons == [None, "no known image format", None]
    assert shades(images) == [1, 3]


def test_a_truncated_file_is_unreadable(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "webp", "tiff", "bmp"):
        noise.save(tmp_path / f"a.{suffix}")
        data = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) // 2])
        reasons, images = decode_chunk(tmp_path, [f"a.{suffix}"], size=4, channels=1, fit="crop")
        assert len(images) == 0, suffix
        assert reasons[0]


def test_an_empty_file_a_missing_file_and_a_folder_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    reasons, _ = decode_chunk(
        tmp_path, ["empty.png", "missing.png", "folder.png"], size=4, channels=1, fit="crop"
    )
    assert reasons == ["no known image format", "No such file or directory", "Is a directory"]


def test_a_bomb_is_unreadable_and_what_is_merely_large_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "large.png", 7, size=12)
    save(tmp_path / "bomb.png", 7, size=15)
    # Pillow warns from this many pixels on and refuses twice as many.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reasons, images = decode_chunk(tmp_path, ["large.png", "bomb.png"], size=4, channels=1, fit="crop")
    assert reasons[0] is None
    assert "exceeds limit" in str(reasons[1])
    assert shades(images) == [7]


def test_a_reason_holds_no_path(tmp_path: Path) -> None:
    spoil(tmp_path / "a.png")
    reasons, _ = decode_chunk(tmp_path, ["a.png", "b.png"], size=4, channels=1, fit="crop")
    assert not any(str(tmp_path) in str(reason) for reason in reasons)


def test_the_protocol(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    spoil(tmp_path / "b.png")
    requests = io.BytesIO(b'["a.png", "b.png"]\n["b.png"]\n["a.png"]\n')
    replies = io.BytesIO()
    serve(requests, replies, tmp_path, {"size": 4, "channels": 1, "fit": "crop"})
    replies.seek(0)
    assert replies.readline() == b"[]\n"
    assert json.loads(replies.readline()) == [None, "no known image format"]
    assert replies.read(16) == bytes([1] * 16)
    assert json.loads(replies.readline()) == ["no known image format"]
    assert json.loads(replies.readline()) == [None]
    assert replies.read() == bytes([1] * 16)
