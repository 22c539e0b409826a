"""A simulation that an operator ends goes on to the bits of one that nobody ended."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from fedvision import simulate
from fedvision.runs.folder import RunFolder
from fedvision.runs.progress import Silent
from fedvision.runs.stop_request import FILE, request
from tests.experiments import tiny

CONFIG = tiny(rounds=5, strategy={"use": "scaffold"}, checkpoint_every=3, evaluation={"holdout": 0.2})


class Stopping(Silent):
    """Asks for the end of the run while a round is under way."""

    def __init__(self, path: Path, round: int, *, now: bool = False) -> None:
        super().__init__()
        self.path, self.number, self.now = path, round, now

    def client_done(self, round: int, done: int, total: int) -> None:
        if (round, done) == (self.number, 1):
            request(self.path, now=self.now)
            if self.now:
                threading.Event().wait(600)


def model(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    simulate(CONFIG, out=path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("now", "done", "kept"), [(False, 2, 2), (True, 1, 0)])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    now: bool, done: int, kept: int, whole: Path, tmp_path: Path
) -> None:
    """A run ends with a checkpoint that ``checkpoint_every`` would not have made."""
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(CONFIG, out=path, progress=Stopping(path, 2, now=now))
    folder = RunFolder.read(path)
    assert len(folder.rounds()) == done
    assert folder.summary() == {"status": "stopped", "rounds": done}
    what = "stopped by the operator after round " + (
        "1, without waiting for the end of the next" if now else "2"
    )
    assert folder.events()[-1] == {"round": done + 1, "client": None, "what": what}
    assert not (path / FILE).exists()
    checkpoint = folder.checkpoints.load()
    assert (checkpoint.round if checkpoint else 0) == kept
    simulate(CONFIG, out=path, resume=True)
    assert model(path) == model(whole)
    assert (path / "rounds.jsonl").read_bytes() == (whole / "rounds.jsonl").read_bytes()


def test_a_request_in_the_last_round_changes_nothing(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    simulate(CONFIG, out=path, progress=Stopping(path, 5))
    assert json.loads((path / "summary.json").read_text())["status"] == "finished"
    assert model(path) == model(whole)
    assert not (path / FILE).exists()


def test_a_request_that_a_killed_run_left_ends_no_later_one(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(CONFIG, out=path, progress=Stopping(path, 2))
    request(path, now=False)
    try:
        simulate(CONFIG, out=path, resume=True)
    except KeyboardInterrupt:
        pytest.fail("the request was heeded")
    assert model(path) == model(whole)
