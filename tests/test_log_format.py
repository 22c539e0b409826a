"""Logs as JSON: one object a line, whatever is in it, and text again afterwards."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedvision import log_format, stages, streams
from fedvision.cli.main import main
from fedvision.runs.displays import display_on
from fedvision.runs.progress import Progress


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What goes to standard error while JSON is written; text is written again in the end."""
    yield io.StringIO()
    log_format.use("text")


def begin(monkeypatch: pytest.MonkeyPatch, held: io.StringIO) -> None:
    """Write JSON from now on: pytest puts its own streams in place before the test begins."""
    monkeypatch.setattr(sys, "stderr", held)
    log_format.use("json", client="north")


def objects(held: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in held.getvalue().splitlines()]


def test_sentences_stages_rounds_and_log_records_are_objects(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(monkeypatch, written)
    streams.complain("fedvision: wrong\nin two lines é", level="error", kind="error")
    logging.getLogger("fedvision.deployment").warning("%s is connected", "north")
    progress = Progress(sys.stderr)
    progress.start(3, 1)
    progress.round_done(1, {"round": 1, "train_loss": 0.5, "clients": [0, 1]}, {"total": 2.0})
    progress.note("round 2: client south (1): no", {"round": 2, "client": "south (1)"})
    found = objects(written)
    for one in found:
        assert datetime.fromisoformat(one.pop("time")).utcoffset() == datetime.now(UTC).utcoffset()
        assert one.pop("client") in ("north", "south (1)")
    left = found[2].pop("left")
    assert isinstance(left, str)
    assert found == [
        {"level": "error", "kind": "error", "message": "fedvision: wrong\nin two lines é"},
        {
            "level": "warning",
            "kind": "log",
            "message": "north is connected",
            "logger": "fedvision.deployment",
        },
        {
            "level": "info", "kind": "round", "message": "loss 0.500  2 clients", "round": 1, "rounds": 3,
            "took": "2.00 s",
        },
        {"level": "info", "kind": "note", "message": "round 2: client south (1): no", "round": 2},
    ]  # fmt: skip
    assert written.getvalue().isascii()


def test_an_exception_is_one_object_with_its_traceback(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(monkeypatch, written)
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        logging.getLogger("x").exception("it failed")
        sys.excepthook(ValueError, error, error.__traceback__)
    logged, uncaught = objects(written)
    assert (logged["message"], logged["level"]) == ("it failed", "error")
    assert (uncaught["message"], uncaught["level"]) == ("ValueError: a\nb", "critical")
    assert all(one["traceback"].startswith("Traceback") for one in (logged, uncaught))


def test_text_comes_back_with_the_handlers_that_were_there(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(logging.root.handlers)
    log_format.use("json")
    log_format.use("json", client="north")
    log_format.use("text")
    assert logging.root.handlers == before
    assert sys.excepthook is sys.__excepthook__
    streams.complain("plain", level="error")
    assert capsys.readouterr().err == "plain\n"
    held = io.StringIO()
    display_on(held).message("plain", {"round": 1})
    assert held.getvalue() == "plain\n"


def test_the_option_holds_for_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["server", str(tmp_path / "none.toml"), "--insecure", "--clients", ".", "--log-format"]
    assert main([*command, "json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    page = json.loads(line)
    assert (page["level"], page["kind"]) == ("error", "error")
    assert "there is no such file" in page["message"]
    assert main([*command, "text"]) == 2
    assert capsys.readouterr().err.startswith("fedvision: ")
    stages.unfollow()


def test_a_process_that_is_started_writes_the_same_format(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(monkeypatch, written)
    program = (
        "import logging; from fedvision import log_format; "
        "log_format.handler().handle(logging.makeLogRecord({'msg': 'x'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr)["message"] == "x"
