"""Tables by hand: medians, ratios of medians, ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import figures


def run(rival: str, loop: float, **more: Any) -> dict[str, Any]:
    base = {"workload": "w1", "rival": rival, "repetition": 0, "rounds": 10, "loop_s": loop}
    return {**base, "pss_mb": 1234.5, "accuracy": None, **more}


RUNS = [run("plain", 20.0), run("plain", 30.0), run("plain", 10.0), run("fedvision-serial", 5.0)]


def test_a_table_holds_medians_ratios_and_ranges_the_fastest_first() -> None:
    lines = figures.table(RUNS, "w1").splitlines()
    assert lines[0].startswith("| rival | n | rounds/s | / plain | loop, s |")
    assert lines[2].startswith("| fedvision-serial | 1 | 2.00 | 0.25 | 5.0 |")
    assert lines[3].startswith("| plain | 3 | 0.50 | 1.00 | 20.0 (10.0 to 30.0) |")
    assert "| 1,234 |" in lines[2]
    assert lines[2].endswith("| - |")


def test_without_the_reference_there_is_no_ratio() -> None:
    assert "| 2.00 | - | 5.0 |" in figures.table(RUNS[3:], "w1")


def test_idle_rounds_leave_the_first_and_the_last_out() -> None:
    assert figures.between([10.0, 11.0, 13.0, 99.0]) == [1.0, 2.0]
    text = figures.idle_table([run("a", 9.0, workload="idle", marks=[10.0, 11.0, 13.0, 99.0])], "idle")
    assert text.splitlines()[2] == "| a | 1 | 1.50 | 500 |"


def test_the_picture_names_every_rival(tmp_path: Path) -> None:
    figures.draw([*RUNS, run("flower", 50.0, workload="w2")], ["w1", "w2"], tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().count("<svg") == 1
