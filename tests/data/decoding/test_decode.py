"""Images are decoded once, changed ones again; unreadable ones are named, counted and limited."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision.data.decoding import cache, decode, file_digest
from fedvision.data.decoding.decode import Decoded, Decoding, named
from fedvision.errors import DataError
from tests.data.pictures import save, shades, spoil

NAMES = [f"{number}.png" for number in range(5)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make five images that are as good as old: what has just changed is not trusted to stay."""
    monkeypatch.setattr(cache, "_RACY_NS", -(10**18))
    for number, name in enumerate(NAMES):
        save(tmp_path / "images" / name, number)
    return tmp_path / "images"


def run(root: Path, names: list[str] = NAMES, **keys: Any) -> Decoded:
    how: dict[str, Any] = {"size": 4, "channels": 1, "workers": 1, "cache": str(root.parent / "cache")}
    return decode.decode(root, names, Decoding(**how | keys))


def poison(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let reading contents or decoding fail from now on."""
    for name in names:
        module = file_digest if name == "contents" else decode
        monkeypatch.setattr(module, name, None)


def test_images_come_in_the_order_of_the_names(root: Path) -> None:
    found = run(root, NAMES[::-1])
    assert shades(found.images) == [4, 3, 2, 1, 0]
    assert found.readable.tolist() == [0, 1, 2, 3, 4]
    assert found.notices == ()


def test_a_second_start_reads_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(root)
    poison(monkeypatch, "contents", "decode_all")
    second = run(root)
    assert shades(second.images) == shades(first.images)


def test_what_has_just_changed_is_read_again_but_not_decoded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_RACY_NS", 10**18)
    run(root)
    poison(monkeypatch, "decode_all")
    assert shades(run(root).images) == [0, 1, 2, 3, 4]


def test_a_moved_folder_is_not_decoded_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(root)
    root.rename(root.parent / "moved")
    poison(monkeypatch, "decode_all")
    assert shades(run(root.parent / "moved").images) == [0, 1, 2, 3, 4]


def test_a_changed_file_is_decoded_again(root: Path) -> None:
    run(root)
    times = os.stat(root / NAMES[2])
    time.sleep(0.02)  # A clock tick of the file system, for its change time.
    save(root / NAMES[2], 9)
    os.utime(root / NAMES[2], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert shades(run(root).images) == [0, 1, 9, 3, 4]


@pytest.mark.parametrize("keys", [{"size": 5}, {"channels": 3}, {"fit": "pad"}])
def test_another_way_of_decoding_does_not_find_the_old_pixels(root: Path, keys: dict[str, Any]) -> None:
    run(root)
    size, channels = keys.get("size", 4), keys.get("channels", 1)
    assert run(root, **keys).images.shape == (5, size, size, channels)


def test_a_removed_cache_is_made_again(root: Path) -> None:
    run(root)
    for images in (root.parent / "cache").glob("*/images.npy"):
        images.unlink()
    assert shades(run(root).images) == [0, 1, 2, 3, 4]


def test_unreadable_files_are_left_out_named_and_counted(root: Path) -> None:
    spoil(root / NAMES[1])
    (root / NAMES[3]).unlink()
    found = run(root, max_unreadable=0.4)
    assert shades(found.images) == [0, 2, 4]
    assert found.readable.tolist() == [0, 2, 4]
    assert found.notices == (
        "2 of 5 image files cannot be read and are left out: "
        "1.png (no known image format), 3.png (No such file or directory)",
    )
    assert run(root, max_unreadable=0.4).notices == found.notices


def test_more_than_the_limit_is_an_error_with_all_that_is_needed(root: Path) -> None:
    spoil(root / NAMES[1])
    spoil(root / NAMES[3])
    message = (
        r"images: 2 of 5 image files \(40\.0%\) cannot be read, more than max_unreadable = 0\.39 allows: "
        r"1\.png \(no known image format\), 3\.png .*; repair or remove them, or raise max_unreadable"
    )
    with pytest.raises(DataError, match=message):
        run(root, max_unreadable=0.39)


def test_a_raised_limit_does_not_decode_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(root / NAMES[1])
    with pytest.raises(DataError):
        run(root)
    poison(monkeypatch, "decode_all")
    assert len(run(root, max_unreadable=0.5).images) == 4


def test_no_readable_file_at_all_is_an_error_whatever_the_limit(root: Path) -> None:
    for name in NAMES:
        spoil(root / name)
    with pytest.raises(DataError, match=r"none of 5 image files can be read: 0\.png .* and 2 more"):
        run(root, max_unreadable=0.99)


def test_a_file_without_permission_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Raised by hand: the tests may run as root, who may read anything.
    from PIL import Image

    real = Image.open

    def refuse(path: Path, **keys: Any) -> Any:
        if path.name == "2.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **keys)

    monkeypatch.setattr(Image, "open", refuse)
    assert "2.png (Permission denied)" in run(root, max_unreadable=0.2).notices[0]


@given(spoilt=st.sets(st.integers(0, 9), max_size=9))
@settings(max_examples=15)
def test_readable_and_unreadable_together_are_all(
    spoilt: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("some") / "images"
    for number in range(10):
        (spoil if number in spoilt else lambda path, shade=number: save(path, shade))(root / f"{number}.png")
    found = run(root, [f"{number}.png" for number in range(10)], max_unreadable=0.9)
    assert shades(found.images) == found.readable.tolist() == sorted(set(range(10)) - spoilt)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_alone(
    root: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    # Set by many build servers; it makes colours, not a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(screen, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    run(root)
    assert ("Decoding image files" in screen.getvalue()) == terminal
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"size": 0}, "size must be the side of the images in pixels, > 0, not 0"),
        ({"channels": 4}, "channels must be 1 (gray) or 3 (RGB), not 4"),
        ({"fit": "squash"}, "fit must be one of crop, stretch, pad, exact, not 'squash'"),
        ({"max_unreadable": 1.0}, "max_unreadable must be >= 0 and < 1, not 1.0"),
        ({"max_unreadable": -0.1}, "max_unreadable must be >= 0 and < 1, not -0.1"),
        ({"workers": -1}, "workers must be >= 0, not -1"),
    ],
)
def test_values_out_of_range(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="must") as caught:
        Decoding(**{"size": 4} | keys)
    assert str(caught.value) == sentence


def test_a_sentence_names_three_and_counts_the_rest() -> None:
    assert named("abc") == "a, b, c"
    assert named("abcde") == "a, b, c and 2 more"
    assert named(str(n) for n in np.arange(2)) == "0, 1"
