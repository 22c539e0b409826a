"""A request to end a run: who hears of it, when, and that no later process does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fedvision.errors import RunFolderError
from fedvision.runs.stop_request import FILE, StoppedByOperator, StopWatch, request, withdraw


def test_a_request_ends_a_run_between_its_rounds_only(tmp_path: Path) -> None:
    watch = StopWatch(tmp_path)
    watch.check()
    request(tmp_path, now=False)
    watch.check_now()
    with pytest.raises(StoppedByOperator):
        watch.check()
    watch.check_now()
    assert (watch.requested, watch.now) == (True, False)


def test_a_request_for_now_interrupts_what_the_run_waits_for(tmp_path: Path) -> None:
    watch = StopWatch(tmp_path, pause=0.01)

    def wait() -> None:
        with watch:
            request(tmp_path, now=True)
            threading.Event().wait(600)

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert watch.now
    assert not (tmp_path / FILE).exists(), "it goes away with the run"
    with pytest.raises(StoppedByOperator):
        watch.check_now()


def test_a_run_in_another_thread_is_not_interrupted_but_told(tmp_path: Path) -> None:
    """Python raises an interrupt in the main thread, which does something else here."""
    seen: list[bool] = []

    def run() -> None:
        with StopWatch(tmp_path, pause=0.01) as watch:
            request(tmp_path, now=True)
            watch._thread.join(600)  # type: ignore[union-attr]
            try:
                watch.check_now()
            except StoppedByOperator:
                seen.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize("text", ["", "{}", '{"now": "yes"}', "[", "[1]"])
def test_what_is_no_request_asks_for_the_milder_one(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    watch = StopWatch(tmp_path)
    watch.look()
    assert (watch.requested, watch.now) == (True, False)


def test_a_request_is_withdrawn(tmp_path: Path) -> None:
    withdraw(tmp_path)
    request(tmp_path, now=True)
    withdraw(tmp_path)
    assert not list(tmp_path.iterdir())
    StopWatch(tmp_path).check()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be written"):
        request(tmp_path / "none", now=False)
