"""A maker of run folders for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedvision.config import ExperimentConfig
from fedvision.runs.folder import RunFolder
from tests.reporting.sample import COUNTS, MakeRun, record


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a maker of run folders under the test's folder."""

    def make(
        name: str = "run",
        rounds: int = 3,
        *,
        classes: tuple[str, ...] = ("cat", "dog", "ant"),
        summary: dict[str, Any] | None = None,
        changes: dict[str, Any] | None = None,
        split: bool = True,
        counts: list[list[int]] = COUNTS,
        **config: Any,
    ) -> RunFolder:
        table = {"name": name, "rounds": 3, "data": {"use": "digits"}, **config}
        folder = RunFolder.create(tmp_path / name, ExperimentConfig.from_dict(table))
        if split:
            folder.write_split({"digest": "abc123", "classes": classes, "counts": counts, "left_out": 7})
        for number in range(1, rounds + 1):
            seconds = {"train": 2.0, "server": 0.5, "local": 0.5, "total": 3.0}
            folder.append_round(record(number, counts, **(changes or {})), seconds)
        if summary is not None:
            folder.write_summary(summary)
        return folder

    return make
