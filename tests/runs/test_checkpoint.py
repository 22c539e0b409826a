"""Checkpoints: bits come back, damage is named, and a kill or a full disk at any instant loses nothing."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from fedvision.config import ExperimentConfig
from fedvision.errors import RecordError, RunFolderError
from fedvision.runs import folder as folder_module
from fedvision.runs.checkpoint import Checkpoint, decode_state, encode_state
from fedvision.runs.folder import RunFolder

if TYPE_CHECKING:
    from fedvision.types import State

CONFIG = ExperimentConfig.from_dict({"data": {"use": "digits"}})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG)


def _state(value: float, size: int = 3) -> State:
    return {"w": torch.full((size, 2), value), "b": torch.tensor([value])}


def _round(folder: RunFolder, number: int, size: int = 3) -> None:
    """Record and save a round whose every fact has its number."""
    folder.append_round({"round": number, "train_loss": number / 2}, {"train": 0.1})
    tensors = {"model": _state(number, size), "strategy": {"m": torch.tensor(float(number))}}
    folder.checkpoints.save(number, tensors, {"roster": [number]})


def _check(folder: RunFolder, loaded: Checkpoint | None) -> int:
    """Check that a loaded checkpoint and both logs have the same last round, and return it."""
    if loaded is None:
        assert folder.rounds() == folder.timings() == []
        return 0
    assert torch.equal(loaded.tensors["model"]["w"], torch.full((3, 2), float(loaded.round)))
    assert float(loaded.tensors["strategy"]["m"]) == loaded.round
    assert loaded.values == {"roster": [loaded.round]}
    assert [record["round"] for record in folder.rounds()] == list(range(1, loaded.round + 1))
    assert [record["round"] for record in folder.timings()] == list(range(1, loaded.round + 1))
    return loaded.round


def test_tensors_come_back_to_the_bit() -> None:
    tied = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    state = {
        "nan": torch.tensor([0x7FC01234, 0x7F800000], dtype=torch.int32).view(torch.float32),
        "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "transposed": tied.T,
        "tied": tied,
        "tied too": tied,
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    back = decode_state(encode_state(state))
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
    assert back["nan"].view(torch.int32).tolist() == [0x7FC01234, 0x7F800000]
    assert torch.equal(back["transposed"], tied.T)
    assert torch.equal(back["half"], state["half"])


def test_equal_states_are_equal_bytes_whatever_their_order() -> None:
    state = _state(0.1)
    assert encode_state(state) == encode_state(dict(reversed(state.items())))


def test_a_checkpoint_comes_back(folder: RunFolder) -> None:
    assert folder.checkpoints.load() is None
    values = {"best": 0.1 + 0.2, "lowest": float("inf"), "words": ["a", None]}
    folder.checkpoints.save(4, {"model": _state(1 / 3), "strategy": {}}, values)
    loaded = folder.checkpoints.load()
    assert loaded is not None
    assert loaded.round == 4
    assert loaded.values == values
    assert torch.equal(loaded.tensors["model"]["w"], _state(1 / 3)["w"])
    assert loaded.tensors["strategy"] == {}


def test_the_older_checkpoint_goes(folder: RunFolder) -> None:
    for number in (1, 2, 2):
        folder.checkpoints.save(number, {"model": _state(number)}, {})
    names = sorted(os.listdir(folder.path / "checkpoint"))
    assert names == ["latest.json", "round-00002-again"]
    folder.checkpoints.save(2, {"model": _state(9)}, {})
    loaded = folder.checkpoints.load()
    assert loaded is not None
    assert float(loaded.tensors["model"]["b"]) == 9


def test_rounds_after_the_checkpoint_are_cut_off(folder: RunFolder) -> None:
    _round(folder, 1)
    saved = (folder.path / "rounds.jsonl").read_bytes()
    folder.append_round({"round": 2}, {"train": 0.2})
    with (folder.path / "timings.jsonl").open("ab") as file:
        file.write(b'{"round":3,')
    assert _check(folder, folder.checkpoints.load()) == 1
    assert (folder.path / "rounds.jsonl").read_bytes() == saved


def test_without_a_checkpoint_every_round_is_cut_off(folder: RunFolder) -> None:
    folder.append_round({"round": 1}, {"train": 0.2})
    assert _check(folder, folder.checkpoints.load()) == 0


@pytest.mark.parametrize("name", ["model.safetensors", "strategy.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["flip", "shorten", "remove"])
def test_a_damaged_file_is_named(folder: RunFolder, name: str, harm: str) -> None:
    _round(folder, 1)
    file = folder.path / "checkpoint" / "round-00001" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(data if harm == "flip" else data[:-1])
    with pytest.raises(RunFolderError, match=rf"round-00001/{name}: .*--out"):
        folder.checkpoints.load()
    assert len(folder.rounds()) == 1


def test_a_shortened_log_is_named(folder: RunFolder) -> None:
    _round(folder, 1)
    os.truncate(folder.path / "rounds.jsonl", 3)
    with pytest.raises(RunFolderError, match=r"rounds\.jsonl: it has 3 bytes"):
        folder.checkpoints.load()


def test_a_group_is_a_plain_name(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        folder.checkpoints.save(1, {"../model": _state(1)}, {})


@pytest.mark.long
def test_a_kill_before_any_call_to_the_system_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill -9 before the n-th write, fsync, rename or removal of two rounds, for every n."""
    monkeypatch.setattr(folder_module, "environment", lambda device, start: {})
    for calls in range(1, 200):
        folder = RunFolder.create(tmp_path / f"run-{calls}", CONFIG)
        killed = _in_child(lambda folder=folder, calls=calls: _rounds_until_call(folder, calls))  # type: ignore[misc]
        opened = RunFolder.resume(folder.path, CONFIG)
        last = _check(opened, opened.checkpoints.load())
        _round(opened, last + 1)
        assert _check(opened, opened.checkpoints.load()) == last + 1
        if not killed:
            assert last == 2
            break
    assert 20 < calls < 199


def test_a_kill_at_a_random_instant_loses_nothing(tmp_path: Path) -> None:
    chance = random.Random(5)
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    last = 0
    for _ in range(8):

        def soon(target: int = last + chance.randint(1, 4), delay: float = chance.uniform(0, 0.004)) -> None:
            deadline = time.monotonic() + 60
            while len(folder.rounds()) < target:
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            time.sleep(delay)

        assert _in_child(lambda start=last: _rounds(folder, start), until=soon)  # type: ignore[misc]
        reached = _check(folder, folder.checkpoints.load())
        assert reached >= last
        last = reached
    assert last > 0


def test_a_full_disk_keeps_the_last_checkpoint(folder: RunFolder) -> None:
    _round(folder, 1)
    with _largest_file(10_000):
        folder.append_round({"round": 2, "train_loss": 1.0}, {"train": 0.1})
        with pytest.raises(RecordError, match=r"checkpoint of round 2 could not be written: File too large"):
            folder.checkpoints.save(2, {"strategy": {}, "model": _state(2, 2000)}, {})
    assert sorted(os.listdir(folder.path / "checkpoint")) == ["latest.json", "round-00001"]
    assert _check(folder, folder.checkpoints.load()) == 1
    _round(folder, 2)
    assert _check(folder, folder.checkpoints.load()) == 2


def test_a_disk_that_fails_after_the_rename_keeps_the_new_checkpoint(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _round(folder, 1)
    rename = os.replace

    def rename_then_fail(source: Path, target: Path) -> None:
        rename(source, target)
        monkeypatch.setattr(os, "fsync", _fail)

    monkeypatch.setattr(os, "replace", rename_then_fail)
    folder.append_round({"round": 2}, {})
    with pytest.raises(RecordError, match="Input/output error"):
        folder.checkpoints.save(
            2, {"model": _state(2), "strategy": {"m": torch.tensor(2.0)}}, {"roster": [2]}
        )
    monkeypatch.undo()
    assert _check(folder, folder.checkpoints.load()) == 2


def _fail(descriptor: int) -> None:
    raise OSError(5, "Input/output error")


def _rounds(folder: RunFolder, start: int, count: int = 10_000) -> None:
    for number in range(start + 1, start + 1 + count):
        _round(folder, number)


def _rounds_until_call(folder: RunFolder, calls: int) -> None:
    """Run two rounds and kill this process before the given call to the operating system."""
    left = [calls]
    for name in ("open", "write", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
        setattr(os, name, _deadly(getattr(os, name), left))
    _rounds(folder, 0, 2)


def _deadly(call: Callable[..., object], left: list[int]) -> Callable[..., object]:
    def counted(*args: object, **options: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)

    return counted


def _in_child(work: Callable[[], None], until: Callable[[], None] | None = None) -> bool:
    """Run ``work`` in a forked process, kill it once ``until`` returns; return whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    if until is not None:
        until()
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let the operating system refuse bytes past ``size`` in any file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_killed_save_left_does_not_get_into_the_next_one(folder: RunFolder) -> None:
    _round(folder, 1)
    half = folder.path / "checkpoint/round-00002"
    half.mkdir()
    (half / "stranger.safetensors").write_bytes(b"half")
    part = folder.path / "checkpoint/latest.json.part"
    part.write_bytes(b"half")
    _round(folder, 2)
    assert _check(folder, folder.checkpoints.load()) == 2
    assert not part.exists()
    assert not (half / "stranger.safetensors").exists()
    assert [one.name for one in (folder.path / "checkpoint").iterdir() if one.is_dir()] == ["round-00002"]
