"""Several decoders give what one gives, whatever a file does to them, and leave no process behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision.data.decoding import process_pool
from fedvision.data.decoding.process_pool import PixelFormat, decode_all
from fedvision.errors import DataError
from tests.data.pictures import save, shades, spoil

RECIPE = PixelFormat(4, 1, "crop")


def run(root: Path, names: list[str], workers: int) -> tuple[list[str | None], list[int]]:
    answers = list(decode_all(root, names, RECIPE, workers))
    return [why for reasons, _ in answers for why in reasons], [s for _, i in answers for s in shades(i)]


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Make 60 files, every seventh spoilt: four chunks, the last one short."""
    found = [f"{number:02}.png" for number in range(60)]
    for number, name in enumerate(found):
        if number % 7:
            save(tmp_path / name, number)
        else:
            spoil(tmp_path / name)
    return found


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_answers_come_in_order_whatever_the_number_of_processes(
    tmp_path: Path, names: list[str], workers: int
) -> None:
    reasons, found = run(tmp_path, names, workers)
    assert [number for number, why in enumerate(reasons) if why] == list(range(0, 60, 7))
    assert found == [number for number in range(60) if number % 7]


def test_names_may_hold_any_bytes(tmp_path: Path) -> None:
    odd = [os.fsdecode(b"\xff\xfe.png"), "line\nbreak.png", 'quo"te.png', "grün.png"]
    for number, name in enumerate(odd):
        save(tmp_path / name, number)
    names = odd * 8
    reasons, found = run(tmp_path, names, 2)
    assert not any(reasons)
    assert found == [0, 1, 2, 3] * 8


@pytest.fixture
def fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let decoder processes die of a signal, as of a bug in C, on files called crash."""
    script = tmp_path / "fragile.py"
    script.write_text(
        "import os, sys\n"
        "from fedvision.data.decoding import decoder, pixels\n"
        "real = pixels.read\n"
        "def read(path, **keys):\n"
        "    if path.name.startswith('crash'): os.kill(os.getpid(), 11)\n"
        "    return real(path, **keys)\n"
        "pixels.read = read\n"
        "decoder._main(*sys.argv[1:])\n"
    )
    start = subprocess.Popen

    def popen(command: list[str], **keys: object) -> object:
        return start(
            [sys.executable, str(script), *command[command.index("fedvision.data.decoding.decoder") + 1 :]],
            **keys,
        )  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", popen)


@pytest.mark.usefixtures("fragile")
def test_file_that_crashes_its_decoder(tmp_path: Path) -> None:
    """A file that crashes its decoder is unreadable and the others are not."""
    names = [f"{number:02}.png" for number in range(30)]
    names[5], names[20] = "crash1.png", "crash2.png"
    for number, name in enumerate(names):
        save(tmp_path / name, number)
    reasons, found = run(tmp_path, names, 2)
    assert {number: why for number, why in enumerate(reasons) if why} == {
        5: "the decoder crashed on it (signal 11)",
        20: "the decoder crashed on it (signal 11)",
    }
    assert found == [number for number in range(30) if number not in (5, 20)]


def test_a_process_that_does_not_start_is_an_error(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"did not start: No such file .*workers = 1"):
        run(tmp_path, names, 2)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DataError, match=r"did not start; data\.workers = 1"):
        run(tmp_path, names, 2)


def test_a_stray_file_in_the_working_folder_is_not_imported(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert len(run(tmp_path, names, 2)[1]) == 51


def children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize("stop_early", [False, True])
def test_no_process_is_left_behind(tmp_path: Path, names: list[str], stop_early: bool) -> None:
    before = children()
    answers = decode_all(tmp_path, names, RECIPE, 2)
    next(answers)
    assert len(children() - before) == 2
    if stop_early:
        answers.close()  # type: ignore[attr-defined]
    else:
        list(answers)
    assert children() == before


def test_few_files_start_no_process(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(process_pool.cores, "available", lambda: 64)
    assert run(tmp_path, names, 0)[1] == [number for number in range(60) if number % 7]


@pytest.mark.parametrize(
    ("seconds", "processes"),
    [(0.001, 0), (0.05, 0), (0.15, 2), (0.2, 3), (1.0, 4)],
    ids=["less than the trial", "work for one", "work for two", "work for three", "no more than cores"],
)
def test_automatic_number_of_decoding_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, processes: int
) -> None:
    """Forty files of so many seconds each, on a clock that only decoding moves, on four cores."""
    names, now, started = [save(tmp_path / f"{n:02}.png", n).name for n in range(40)], [0.0], list[int]()
    real, side_by_side = process_pool.decode_chunk, process_pool._side_by_side

    def decode(root: Path, chunk: list[str], **keys: Any) -> process_pool.Answer:
        now[0] += seconds * len(chunk)
        return real(root, chunk, **keys)

    def several(
        root: Path, rest: list[str], recipe: PixelFormat, count: int, *, meanwhile: bool
    ) -> Iterator[Any]:
        assert meanwhile
        started.append(count)
        return side_by_side(root, rest, recipe, 1, meanwhile=False)

    monkeypatch.setattr(process_pool, "decode_chunk", decode)
    monkeypatch.setattr(process_pool, "_side_by_side", several)
    monkeypatch.setattr(process_pool.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(process_pool.cores, "available", lambda: 4)
    assert run(tmp_path, names, 0) == ([None] * 40, list(range(40)))
    assert started == ([processes] if processes else [])


def test_the_first_files_load_a_decoder_and_do_not_count_alone(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 0.2, 1.0, 1.001, 2.0, 2.2])
    monkeypatch.setattr(process_pool.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(process_pool.cores, "available", lambda: 64)
    decisions: list[process_pool.Decision] = []

    def trial() -> Iterator[process_pool.Answer]:
        decisions.append((yield from process_pool._trial(tmp_path, names * 100, RECIPE)))

    assert len(list(trial())) == 3
    assert decisions == [(48, 1)]


def test_files_are_decoded_here_while_processes_start(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are held until 32 files are decoded here; the rest of the 60 are theirs."""
    here, greet, two_chunks = list[str](), process_pool._Process.greet, threading.Event()
    real = process_pool.decode_chunk

    def decode(root: Path, chunk: list[str], **keys: Any) -> process_pool.Answer:
        if len(here) == 16:
            two_chunks.set()
            while not done():
                time.sleep(0.001)
        here.extend(chunk)
        return real(root, chunk, **keys)

    def held(process: process_pool._Process) -> None:
        two_chunks.wait()
        greet(process)

    def submit(work: Callable[..., Any], *given: Any) -> futures.Future[Any]:
        started.append(waiter.submit(work, *given))
        return started[0]

    def done() -> bool:
        return started[0].done()

    started: list[futures.Future[Any]] = []
    with futures.ThreadPoolExecutor(1) as waiter:
        pool = types.SimpleNamespace(submit=submit)
        monkeypatch.setattr(process_pool, "ThreadPoolExecutor", lambda count: contextlib.nullcontext(pool))
        monkeypatch.setattr(process_pool, "decode_chunk", decode)
        monkeypatch.setattr(process_pool._Process, "greet", held)
        answers = process_pool._side_by_side(tmp_path, names, RECIPE, 2, meanwhile=True)
        found = [shade for _, images in answers for shade in shades(images)]
    assert here == names[:32]
    assert found == [number for number in range(60) if number % 7]


@pytest.mark.parametrize(
    ("files", "side", "processes", "size"),
    [(10_000, 28, 2, 256), (10_000, 224, 2, 27), (10_000, 1000, 2, 16), (800, 28, 4, 25), (60, 28, 9, 16)],
)
def test_requests_are_as_large_as_memory_and_an_even_end_allow(
    files: int, side: int, processes: int, size: int
) -> None:
    assert process_pool._chunk_size(files, PixelFormat(side, 3, "crop"), processes) == size


def test_a_script_without_a_main_guard_may_decode_in_processes(tmp_path: Path, names: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\n"
        "from pathlib import Path\n"
        "from fedvision.data.decoding.process_pool import PixelFormat, decode_all\n"
        f"names = {names!r}\n"
        "found = decode_all(Path(__file__).parent, names, PixelFormat(4, 1, 'crop'), 2)\n"
        "print(sum(len(images) for _, images in found))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["once", "51"]
    assert done.stderr == ""


def test_a_chunk_without_a_readable_file_has_no_rows(tmp_path: Path) -> None:
    names = [spoil(tmp_path / f"{number}.png").name for number in range(20)]
    answers = list(decode_all(tmp_path, names, RECIPE, 2))
    assert [images.shape for _, images in answers] == [(0, 4, 4, 1)] * 2
    assert all(images.dtype == np.uint8 for _, images in answers)
