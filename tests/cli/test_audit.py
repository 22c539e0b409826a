"""``fedvision audit``: the log as text, and exit code 1 where it was tampered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.cli.main import main
from fedvision.config import ExperimentConfig
from fedvision.runs.audit_log import FILE, AuditLog, read_audit
from fedvision.runs.folder import RunFolder

CONFIG = ExperimentConfig.from_dict({"name": "night", "data": {"use": "digits"}})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = RunFolder.create(tmp_path / "night", CONFIG).path
    log = AuditLog(path / FILE)
    log.add("joined", round=0, by="north", client="north", key="SHA256:n", address="10.0.0.7")
    log.add("declined", round=2, by="south", client="south", reason="its hours are\n20:00-06:00")
    log.add("call refused", round=2, by="caller", reason="unknown key", address="10.0.0.66")
    return path


def test_the_log_is_printed_and_checked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" UTC  ")[2] for line in lines[:3]] == [
        "round 0  joined north from 10.0.0.7 (key SHA256:n)",
        "round 2  declined south: its hours are 20:00-06:00",
        "round 2  call refused from 10.0.0.66 by caller: unknown key",
    ]
    last = read_audit(run / FILE).digests[-1]
    assert lines[3:] == [f"3 lines, each follows from the one before it; the last is {last}"]
    assert main(["audit", str(run), "--client", "south", "--noted", last]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["audit", str(run), "--json"]) == 0
    assert capsys.readouterr().out == (run / FILE).read_text()


def test_what_was_changed_is_one_sentence_and_exit_code_1(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / FILE
    last = read_audit(file).digests[-1]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[2])
    assert main(["audit", str(run)]) == 1
    printed = capsys.readouterr()
    assert "line 2 does not follow from the one before it" in printed.err
    assert len(printed.out.splitlines()) == 1, "what comes before it"
    file.write_text("".join(lines[:2]))
    assert main(["audit", str(run), "--noted", last]) == 1
    assert "was cut short or written anew" in capsys.readouterr().err
    assert main(["audit", str(run), "--noted", "abc"]) == 2
    assert "--noted: name the 64 digits" in capsys.readouterr().err


def test_a_simulation_has_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / FILE).unlink()
    assert main(["audit", str(run)]) == 2
    assert "simulations do not" in capsys.readouterr().err
