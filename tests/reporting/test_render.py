"""Runs as text, line by line."""

from __future__ import annotations

import pytest

from fedvision.reporting.render import comparison_table, run_table
from tests.reporting.sample import MakeRun


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def _squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_run_in_text(make_run: MakeRun) -> None:
    refusal = {"client": 1, "stage": "training", "reason": "NaN"}
    summary = {"status": "stopped", "notices": ["2 of 9 files could not be read"]}
    folder = make_run("tail", rounds=2, summary=summary, changes={"refused": [refusal]})
    lines = _squeezed(run_table(folder))
    assert lines[0] == "tail: stopped, 2 of 3 rounds, 2 clients"
    assert "accuracy 53.3% 60.0%" in lines
    assert "tail classes 30.0% 0.0%" in lines
    assert "loss 1.000 0.700" in lines
    assert "worst client 50.0% (1)" in lines
    assert lines[lines.index("ant 2 30.0%") :][:3] == ["ant 2 30.0%", "dog 8 60.0%", "cat 10 70.0%"]
    assert lines[-2:] == [
        "2 kB sent to clients, 1 kB back, 6.00 s; 2 replies refused",
        "note: 2 of 9 files could not be read",
    ]


def test_a_run_that_has_just_begun_in_text(make_run: MakeRun) -> None:
    assert run_table(make_run("x", rounds=0, split=False)).splitlines() == [
        "x: unfinished, 0 of 3 rounds",
        "",
        "0 B sent to clients, 0 B back, 0.00 s",
    ]


def test_a_comparison_in_text(make_run: MakeRun) -> None:
    folders = [
        make_run("a", seed=1),
        make_run("b", seed=2),
        make_run("c", rounds=1, loss={"use": "focal"}, changes={"local": None}),
    ]
    lines = _squeezed(comparison_table(folders))
    assert any(line.startswith("loss.use=cross-entropy 2 60.0 ± 0.0% 60.0 ± 0.0%") for line in lines)
    assert any(line.startswith("loss.use=focal (1 unfinished) 1 46.7% 46.7%") for line in lines)
    assert "loss.use=focal 60.0% 60.0% 20.0%" in lines
    assert lines[-1] == "mean ± sample standard deviation over n runs that differ in their seed alone"
    assert "mean ±" not in comparison_table(folders[1:])
