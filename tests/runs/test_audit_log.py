"""The audit log's chain: what it shows of tampering, and what it cannot show."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.errors import RunFolderError
from fedvision.files import read_lines
from fedvision.runs.audit_log import AuditLog, read_audit


def written(file: Path, lines: int = 4) -> list[bytes]:
    log = AuditLog(file)
    for number in range(lines):
        log.add("joined", round=number, by=f"c{number}", client=f"c{number}", key="SHA256:x", address="")
    return file.read_bytes().splitlines(keepends=True)


def test_each_line_holds_the_digest_of_the_one_before_it(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    raw = written(file, 3)
    lines = read_lines(file)
    assert lines[0]["previous"] == ""
    assert lines[1]["previous"] == hashlib.sha256(raw[0].rstrip(b"\n")).hexdigest()
    assert "address" not in lines[0], "what is not known is left out"
    found = read_audit(file)
    assert [line["client"] for line in found.lines] == ["c0", "c1", "c2"]
    assert found.digests[-1] == hashlib.sha256(raw[2].rstrip(b"\n")).hexdigest()
    assert found.broken == 0


def test_a_later_process_goes_on_with_the_chain_also_after_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    written(file, 2)
    with file.open("ab") as end:
        end.write(b'{"half')
    assert len(read_audit(file).lines) == 2
    AuditLog(file).add("left", round=3, by="server", client="c0")
    found = read_audit(file)
    assert (len(found.lines), found.broken) == (3, 0)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda raw: [raw[0], raw[1].replace(b'"c1"', b'"c9"'), *raw[2:]], 3),
        (lambda raw: [raw[0], *raw[2:]], 2),
        (lambda raw: raw[1:], 1),
        (lambda raw: [raw[0], raw[2], raw[1], raw[3]], 2),
        (lambda raw: [*raw[:2], raw[1], *raw[2:]], 3),
        (lambda raw: [*raw[:2], b"no JSON\n", *raw[2:]], 3),
        (lambda raw: [*raw[:2], b"[1]\n", *raw[2:]], 3),
    ],
)
def test_a_line_that_was_changed_removed_moved_or_put_in_is_found(
    change: object, broken: int, tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b"".join(change(written(file))))  # type: ignore[operator]
    found = read_audit(file)
    assert found.broken == broken
    assert len(found.lines) == broken - 1


def test_what_the_chain_alone_cannot_show_a_noted_digest_does(tmp_path: Path) -> None:
    """Lines cut off at the end, or a log that is made anew, still fit; a digest that was noted is missing."""
    file = tmp_path / "audit.jsonl"
    raw = written(file)
    noted = read_audit(file).digests[-1]
    file.write_bytes(b"".join(raw[:2]))
    found = read_audit(file)
    assert (found.broken, noted in found.digests) == (0, False)


@given(st.data())
def test_no_byte_before_the_last_line_can_be_changed(data: st.DataObject) -> None:
    lines, previous = [], ""
    for number in range(4):
        page = {"by": "a", "client": None, "previous": previous, "round": number, "time": "t", "what": "w"}
        lines.append(json.dumps(page, sort_keys=True, separators=(",", ":")).encode())
        previous = hashlib.sha256(lines[-1]).hexdigest()
    text = b"\n".join(lines) + b"\n"
    end = sum(len(one) + 1 for one in lines[:3])
    place = data.draw(st.integers(0, end - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[place]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        path.write_bytes(text[:place] + bytes([value]) + text[place + 1 :])
        found = read_audit(path)
    assert found.broken or len(found.lines) < 4 or found.digests[-1] != previous


def test_no_log_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="simulations do not"):
        read_audit(tmp_path / "audit.jsonl")


def test_a_log_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(RunFolderError, match=r"audit.jsonl: it cannot be read: Is a directory"):
        read_audit(tmp_path / "audit.jsonl")
