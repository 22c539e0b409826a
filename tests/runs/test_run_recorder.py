"""What a run's folder has after it failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedvision.errors import RunError, RunFolderError
from fedvision.runs.folder import RunFolder
from fedvision.runs.run_recorder import RunRecorder


def test_a_report_that_cannot_be_made_does_not_hide_why_the_run_failed(tmp_path: Path) -> None:
    def write_pages(folder: RunFolder) -> None:
        raise RunFolderError("events.jsonl: this is no JSON")

    folder = RunFolder(tmp_path)
    run: Any = SimpleNamespace(done=2, folder=folder, write_pages=write_pages)
    RunRecorder.mark_failed(run, RunError("nobody answered"))
    assert folder.summary() == {"status": "failed", "rounds": 2, "error": "nobody answered"}
