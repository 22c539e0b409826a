"""An entry is there whole or not at all, and a cache that cannot be used is a notice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedvision.data.decoding.cache import Cache
from fedvision.data.decoding.process_pool import Answer, PixelFormat
from fedvision.errors import DataError

RECIPE = PixelFormat(2, 1, "crop")
NOW = 10**19


def answers(*shades: int | None) -> Iterator[Answer]:
    """Yield chunks of two; None is an unreadable file."""
    for start in range(0, len(shades), 2):
        chunk = shades[start : start + 2]
        reasons = [None if shade is not None else "spoilt" for shade in chunk]
        images = [np.full((2, 2, 1), shade, np.uint8) for shade in chunk if shade is not None]
        yield reasons, np.stack(images) if images else np.empty((0, 2, 2, 1), np.uint8)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def partials(cache: Cache) -> list[Path]:
    return list(cache.folder.glob("partial-*"))


def test_what_is_stored_is_loaded_as_a_read_only_memory_map(cache: Cache) -> None:
    cache.store("key", 5, RECIPE, answers(1, None, None, None, 5))
    entry = cache.load("key")
    assert entry
    assert isinstance(entry.images, np.memmap)
    assert not entry.images.flags.writeable
    assert entry.images.shape == (2, 2, 2, 1)
    assert entry.images[:, 0, 0, 0].tolist() == [1, 5]
    assert entry.notes == {1: "spoilt", 2: "spoilt", 3: "spoilt"}
    # Any program can read it: the file is a plain .npy, though its length was not known at first.
    np.testing.assert_array_equal(np.load(cache.folder / "key/images.npy"), entry.images)


def test_an_entry_without_any_readable_file_is_an_entry(cache: Cache) -> None:
    cache.store("key", 2, RECIPE, answers(None, None))
    entry = cache.load("key")
    assert entry
    assert entry.images.shape == (0, 2, 2, 1)


def test_there_is_nothing_before(cache: Cache) -> None:
    assert cache.load("key") is None
    assert cache.recall("fingerprint") is None


def test_images_are_for_their_owner_alone(cache: Cache) -> None:
    cache.store("key", 1, RECIPE, answers(1))
    for folder in (cache.folder, cache.folder / "key"):
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_an_interrupted_decode_leaves_nothing(cache: Cache, error: type[BaseException]) -> None:
    def interrupted() -> Iterator[Answer]:
        yield from answers(1, 2)
        raise error

    with pytest.raises(error):
        cache.store("key", 4, RECIPE, interrupted())
    assert cache.load("key") is None
    assert partials(cache) == []


def test_an_entry_appears_in_one_step(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.store("key", 1, RECIPE, answers(1))
    assert sorted(path.name for path in cache.folder.iterdir()) == ["seen"]


def test_a_killed_decode_leaves_no_entry_and_is_swept_later(cache: Cache) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from fedvision.data.decoding.cache import Cache\n"
        "from fedvision.data.decoding.process_pool import PixelFormat\n"
        "import numpy as np\n"
        "def slow():\n"
        "    yield [None], np.ones((1, 2, 2, 1), np.uint8)\n"
        "    print('half', flush=True); time.sleep(60)\n"
        f"Cache(Path({str(cache.folder)!r})).store('key', 2, PixelFormat(2, 1, 'crop'), slow())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert cache.load("key") is None
    assert len(partials(cache)) == 1
    # It may belong to a process that is still writing ...
    cache.store("key", 1, RECIPE, answers(1))
    assert len(partials(cache)) == 1
    # ... but not after an hour without growing.
    for path in (partials(cache)[0], *partials(cache)[0].iterdir()):
        os.utime(path, (time.time() - 3700,) * 2)
    cache.store("other", 1, RECIPE, answers(1))
    assert partials(cache) == []


@pytest.mark.parametrize("file", ["images.npy", "notes.json"])
@pytest.mark.parametrize("length", [0, 10, 131])
def test_a_damaged_entry_is_none_and_can_be_stored_again(cache: Cache, file: str, length: int) -> None:
    cache.store("key", 2, RECIPE, answers(1, None))
    data = (cache.folder / "key" / file).read_bytes()
    (cache.folder / "key" / file).write_bytes(data[:length])
    if length < len(data):
        assert cache.load("key") is None
    cache.store("key", 2, RECIPE, answers(1, None))
    assert cache.load("key")


def test_of_two_writers_the_first_wins_and_both_can_read(cache: Cache) -> None:
    def overtaken() -> Iterator[Answer]:
        cache.store("key", 1, RECIPE, answers(1))
        yield from answers(1)

    cache.store("key", 1, RECIPE, overtaken())
    assert cache.load("key")
    assert partials(cache) == []


def test_a_fingerprint_is_remembered_unless_a_file_has_just_changed(cache: Cache) -> None:
    cache.remember("fresh", "key", latest=NOW - 10**9, started=NOW)
    assert cache.recall("fresh") is None
    cache.remember("old", "key", latest=NOW - 3 * 10**9, started=NOW)
    assert cache.recall("old") == "key"
    assert partials(cache) == []


def test_notice_on_an_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/cache: the cache .* Not a directory; .*FEDVISION_CACHE"):
        Cache(tmp_path / "file/cache")


def test_missing_permission_is_an_error(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    # Raised by hand: the tests may run as root, who may write anywhere.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(DataError, match="cannot be used: Permission denied; free its disk, or set"):
        cache.store("key", 1, RECIPE, answers(1))


def test_a_disk_that_is_too_small_is_an_error_before_decoding(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 3 * 10**9))
    with pytest.raises(DataError, match=r"take 4\.0 GB and 3\.0 GB are free; make room"):
        cache.store("key", 10**9, RECIPE, iter(()))


def test_a_disk_that_fills_up_while_decoding_is_an_error(cache: Cache) -> None:
    # A limit on file size fails the same write() call as a full disk.
    script = (
        "import resource, signal, sys; from pathlib import Path; import numpy as np\n"
        "from fedvision.data.decoding.cache import Cache\n"
        "from fedvision.data.decoding.process_pool import PixelFormat\n"
        "from fedvision.errors import DataError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "rows = ([None], np.ones((1, 99, 99, 1), np.uint8))\n"
        "try:\n"
        f"    Cache(Path({str(cache.folder)!r})).store('key', 1, PixelFormat(99, 1, 'crop'), [rows])\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "the cache of decoded images cannot be used: File too large; free its disk" in done.stdout
    assert cache.load("key") is None
    assert partials(cache) == []


def test_the_list_of_unreadable_files_is_plain_json(cache: Cache) -> None:
    cache.store("key", 2, RECIPE, answers(1, None))
    assert json.loads((cache.folder / "key/notes.json").read_text()) == {"1": "spoilt"}
