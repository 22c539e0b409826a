"""Files that grow, are cut back and replaced while somebody reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from fedvision.watching.followed_files import FollowedLines, FollowedTable


class Reader:
    """Keeps what was taken."""

    def __init__(self, path: Path) -> None:
        self.taken: list[dict[str, Any]] = []
        self.resets = 0
        self.file = FollowedLines(path, self.taken.append, self.reset)

    def reset(self) -> None:
        self.resets += 1
        self.taken.clear()


def line(number: int, more: str = "") -> bytes:
    return json.dumps({"round": number, "more": more}).encode() + b"\n"


def test_lines_are_taken_once_and_a_half_line_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    reader = Reader(path)
    assert not reader.file.poll()  # there is no file yet
    path.write_bytes(line(1) + line(2)[:5])
    assert reader.file.poll()
    assert [one["round"] for one in reader.taken] == [1]
    assert not reader.file.poll()
    with path.open("ab") as file:
        file.write(line(2)[5:-1])
    assert not reader.file.poll()  # complete but for its end
    with path.open("ab") as file:
        file.write(b"\n")
    assert reader.file.poll()
    assert [one["round"] for one in reader.taken] == [1, 2]
    assert reader.resets == 0


def test_a_file_that_was_cut_back_is_read_anew_even_if_it_is_longer_by_now(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    reader = Reader(path)
    path.write_bytes(line(1) + line(2, "first"))
    reader.file.poll()
    os.truncate(path, len(line(1)))
    assert reader.file.poll()
    assert [one["round"] for one in reader.taken] == [1]
    with path.open("ab") as file:
        file.write(line(2, "again"))
    reader.file.poll()
    assert [one["more"] for one in reader.taken] == ["", "again"]
    before = reader.resets
    os.truncate(path, len(line(1)))
    with path.open("ab") as file:  # cut and grown between two looks
        file.write(line(2, "other") + line(3, "and longer than before"))
    assert reader.file.poll()
    assert [one["more"] for one in reader.taken] == ["", "other", "and longer than before"]
    assert reader.resets == before + 1


def test_a_file_that_was_replaced_or_is_gone_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    reader = Reader(path)
    path.write_bytes(line(1) + line(2))
    reader.file.poll()
    other = tmp_path / "other"
    other.write_bytes(line(1) + line(2) + line(3))
    os.replace(other, path)
    reader.file.poll()
    assert [one["round"] for one in reader.taken] == [1, 2, 3]
    path.unlink()
    assert reader.file.poll()
    assert reader.taken == []


def test_damaged_lines_are_left_out_and_the_first_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(line(1) + b"[1]\n" + b"{\n" + line(2))
    reader = Reader(path)
    reader.file.poll()
    assert [one["round"] for one in reader.taken] == [1, 2]
    assert "rounds.jsonl, line 2: this line cannot be read" in reader.file.damage
    path.write_bytes(line(3))
    reader.file.poll()
    assert reader.file.damage == ""


@hypothesis.given(st.data())
def test_whatever_happens_what_was_taken_are_the_files_complete_lines(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rounds.jsonl"
    path.write_bytes(b"")
    reader, number = Reader(path), 0
    for _ in range(data.draw(st.integers(1, 12))):
        number += 1
        action = data.draw(st.sampled_from(("append", "half", "cut", "look")))
        content = path.read_bytes()
        if action == "append":
            whole = content[: content.rfind(b"\n") + 1]
            path.write_bytes(whole + line(number, "x" * data.draw(st.integers(0, 600))))
        elif action == "half":
            path.write_bytes(content[: content.rfind(b"\n") + 1] + line(number)[:4])
        elif action == "cut":
            kept = content.splitlines(keepends=True)
            path.write_bytes(b"".join(kept[: data.draw(st.integers(0, len(kept)))]))
        else:
            reader.file.poll()
    os.utime(path, ns=(number, number))  # two writes may fall into one tick of the file system's clock
    reader.file.poll()
    complete = path.read_bytes()
    complete = complete[: complete.rfind(b"\n") + 1]
    assert reader.taken == [json.loads(one) for one in complete.splitlines()]


def test_a_table_is_read_where_it_changed(tmp_path: Path) -> None:
    followed = FollowedTable(tmp_path / "summary.json")
    assert not followed.poll()
    followed.path.write_text('{"status": "failed"}')
    assert followed.poll()
    assert not followed.poll()
    assert followed.table == {"status": "failed"}
    followed.path.unlink()
    assert followed.poll()
    assert followed.table == {}
