"""Durable writing: canonical JSON, whole files by replacement, lines that survive a full disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedvision import files
from fedvision.errors import RecordError, RunFolderError


def test_json_lines_of_equal_facts_are_equal_bytes() -> None:
    first = files.json_line({"b": np.float32(0.5), "a": (1, np.int64(2)), "c": {"y": 1, "x": 2}})
    second = files.json_line({"c": {"x": 2, "y": 1}, "a": [1, 2], "b": 0.5})
    assert first == second == '{"a":[1,2],"b":0.5,"c":{"x":2,"y":1}}\n'


def test_what_is_no_number_becomes_null() -> None:
    line = files.json_line({"a": float("nan"), "b": np.array([1.0, np.inf]), "c": {"d": -np.inf}})
    assert line == '{"a":null,"b":[1.0,null],"c":{"d":null}}\n'


def test_lines_come_back_in_order_and_a_torn_last_one_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    for number in range(3):
        files.append_line(path, files.json_line({"round": number, "word": "line\u2028separator\né"}))
    with path.open("ab") as file:
        file.write(b'{"round": 3, "wo')
    assert [record["round"] for record in files.read_lines(path)] == [0, 1, 2]
    assert files.read_lines(path)[0]["word"] == "line\u2028separator\né"


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"round": 1}\n{"round" 2}\n{"round": 3}\n')
    with pytest.raises(RunFolderError, match=r"rounds\.jsonl, line 2: this is no JSON"):
        files.read_lines(path)


def test_missing_files_read_as_empty(tmp_path: Path) -> None:
    assert files.read_lines(tmp_path / "none.jsonl") == []
    assert files.read_json(tmp_path / "none.json") == {}


def test_a_file_keeps_its_old_content_when_the_new_one_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    files.replace_file(path, "old")
    monkeypatch.setattr(os, "write", _disk_that_holds(3))
    with pytest.raises(OSError, match="No space left"):
        files.replace_file(path, "a longer text")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_line_that_does_not_fit_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rounds.jsonl"
    files.append_line(path, '{"round":1}\n')
    monkeypatch.setattr(os, "write", _disk_that_holds(5))
    with pytest.raises(OSError, match="No space left"):
        files.append_line(path, '{"round":2}\n')
    assert path.read_text() == '{"round":1}\n'


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:3]))
    files.write_new(tmp_path / "file", [b"more than ", b"three bytes"])
    assert (tmp_path / "file").read_bytes() == b"more than three bytes"


def test_a_refusal_is_one_sentence_with_a_remedy(tmp_path: Path) -> None:
    with (
        pytest.raises(RecordError, match=r"round 3 could not be written: No space left.*--resume"),
        files.recording("round 3", tmp_path),
    ):
        raise OSError(28, "No space left on device")


def _disk_that_holds(room: int):  # type: ignore[no-untyped-def]
    """Return a stand-in for os.write that takes ``room`` bytes and then reports a full disk."""
    write, left = os.write, [room]

    def full(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        written = write(descriptor, bytes(data)[: left[0]])
        left[0] -= written
        return written

    return full


def test_a_byte_that_is_no_text_comes_back_from_json(tmp_path: Path) -> None:
    files.append_line(tmp_path / "lines", files.json_line({"what": "caf\udce9/0.png"}))
    assert files.read_lines(tmp_path / "lines") == [{"what": "caf\udce9/0.png"}]
    files.replace_file(tmp_path / "page", files.json_page({"what": "caf\udce9/0.png"}))
    assert files.read_json(tmp_path / "page") == {"what": "caf\udce9/0.png"}


def test_a_line_after_a_torn_one_is_a_line_of_its_own(tmp_path: Path) -> None:
    """A power cut leaves a line without its end; glued to it, the next one would spoil the file for good."""
    path = tmp_path / "events.jsonl"
    files.append_line(path, '{"round":1}\n')
    for torn in ('{"rou', '{"round":2}'):
        with path.open("a") as file:
            file.write(torn)
        files.append_line(path, '{"round":3}\n')
    assert [line["round"] for line in files.read_lines(path)] == [1, 3, 3]
    path.write_text("{")
    files.append_line(path, '{"round":4}\n')
    assert files.read_lines(path) == [{"round": 4}]


@pytest.mark.parametrize("read", [files.read_lines, files.read_json])
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(RunFolderError, match=f"{tmp_path}: it cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["[1]", "3", "null"])
def test_json_of_another_kind_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content + "\n")
    with pytest.raises(RunFolderError, match=r"split\.json: this is no table"):
        files.read_json(path)
    with pytest.raises(RunFolderError, match=r"split\.json, line 1: this is no table"):
        files.read_lines(path)


def test_an_empty_file_is_damaged_and_no_missing_one(tmp_path: Path) -> None:
    (tmp_path / "split.json").touch()
    with pytest.raises(RunFolderError, match=r"split\.json: this is no JSON"):
        files.read_json(tmp_path / "split.json")
    assert files.read_json(tmp_path / "summary.json") == {}
