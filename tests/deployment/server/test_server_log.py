"""What a server writes down: one handler, the time and the peer, no codes, no flood, and never too much."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from fedvision.deployment.server import server_log
from fedvision.deployment.server.server_log import OneLineFormatter, PeerLogger, RepeatFilter


def record(text: str, line: int = 1) -> logging.LogRecord:
    return logging.LogRecord("uvicorn.error", logging.WARNING, "h11.py", line, text, None, None)


def test_a_text_is_written_once_a_minute_with_its_number() -> None:
    now = [0.0]
    repeats, written = RepeatFilter(lambda: now[0]), []
    for seconds, text in [(0, "a"), (1, "a"), (2, "b"), (59, "a"), (61, "a"), (62, "a")]:
        now[0] = seconds
        if repeats.filter(line := record(text)):
            written.append(line.getMessage())
    assert written == ["a", "b", "a (2 times more since it was last logged)"]


def test_a_flood_is_one_line_a_minute_with_its_number(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    repeats = RepeatFilter(lambda: now[0])
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        caplog.handler.addFilter(repeats)
        for number in range(5):
            server_log.warn("refused a", "slow", f" [{number}]")
        server_log.warn("refused a", "large")
        server_log.warn("refused b", "slow")
        now[0] = 61
        server_log.warn("refused a", "slow", " [x]")
        caplog.handler.removeFilter(repeats)
    assert caplog.messages == [
        "refused a: slow [0]",
        "refused a: large",
        "refused b: slow",
        "refused a: slow [x] (4 times more since it was last logged)",
    ]


def test_one_place_writes_no_more_than_its_bucket_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much the texts of a flood differ, by the peers' addresses or by what they send."""
    monkeypatch.setattr(server_log, "_BURST", 10.0)
    repeats = RepeatFilter(lambda: 0.0)
    assert sum(repeats.filter(record(f"refused {number}")) for number in range(1000)) == 10
    assert repeats.filter(record("another place", line=2))


def test_a_line_has_the_time_and_no_codes_and_cannot_be_forged() -> None:
    text = OneLineFormatter().format(
        record("\x1b[93mWARN\x1b[0m one\n2026-01-01 00:00:00,000 client north may join\r\x07")
    )
    stamp, rest = text[:23], text[24:]
    assert stamp[4] == "-"
    assert stamp[19] == ","
    assert rest == "WARN one\n    2026-01-01 00:00:00,000 client north may join\\r\\x07"


def test_uvicorns_lines_name_the_peer(caplog: pytest.LogCaptureFixture) -> None:
    logger = PeerLogger(logging.getLogger("uvicorn.error"), "192.0.2.7")
    assert logger.level == logging.getLogger("uvicorn.error").level
    logger.warning("Unsupported upgrade request.")
    logger.error("it returned %r", 3)
    assert caplog.messages == ["192.0.2.7: Unsupported upgrade request.", "192.0.2.7: it returned 3"]


def test_a_full_file_is_set_aside_and_standard_error_goes_with_it(tmp_path: Path) -> None:
    """In a process of its own: it takes over all handlers and descriptor 2."""
    program = f"""
import logging, os, pathlib
from fedvision.deployment.server import server_log
server_log.FILE_BYTES, server_log.OLD_FILES = 2000, 2
server_log.install(pathlib.Path({str(tmp_path / "log")!r}))
import flwr.supercore.logger
for number in range(200):
    logging.getLogger("uvicorn.error").warning("line %d", number)
    logging.getLogger("flwr").warning("flower's %d", number)
os.write(2, b"the interpreter's own words")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["log", "log.1", "log.2"]
    assert all(path.stat().st_size <= 2100 for path in tmp_path.iterdir())
    text = (tmp_path / "log").read_text()
    assert text.endswith("the interpreter's own words")
    assert "flower's 199\n" in text
    assert "\x1b" not in text
