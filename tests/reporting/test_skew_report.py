"""The look at a split before training."""

from __future__ import annotations

import numpy as np
import pytest

from fedvision.reporting.skew_report import CLIENTS_SHOWN, Whole, skew_report


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_clients_classes_weights_and_traffic() -> None:
    counts = np.array([[8, 0], [8, 4]])
    lines = _lines(
        skew_report(
            counts,
            ["cat", "ant"],
            weights={"weight": [0.4, 1.6]},
            state_bytes=1_500_000,
            cohort=10,
            left_out=3,
        )
    )
    assert lines[0] == "20 training images of 2 classes on 2 clients; 3 images left out"
    assert "0 8 1.0 0.108 8 ·" in lines
    assert any(line.startswith("1 12 1.9 0.0") and line.endswith(" 8 4") for line in lines)
    assert "images 10 8 12" in lines
    assert "whole: most frequent / rarest class 4.0" in lines
    assert "cat 16 80.0% 2 0.400" in lines
    assert "ant 4 20.0% 1 1.600" in lines
    assert lines[-1] == "a round sends 15 MB to 10 clients and as much back: 1.5 MB each way for one"


def test_many_clients_and_classes_are_cut_with_a_note() -> None:
    counts = np.random.default_rng(0).integers(1, 9, (300, 100))
    text = skew_report(counts, [f"class {c}" for c in range(100)])
    lines = _lines(text)
    assert f"and {300 - CLIENTS_SHOWN} clients more" in lines
    assert sum(line.startswith("class ") and "%" in line for line in lines) == 12
    assert lines.index("...") > 0
    assert "sends" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_sample_of_the_clients_is_labelled() -> None:
    counts = np.tile([[3, 0], [1, 2]], (50, 1))
    whole = Whole(1_000_000, np.array([5_000_000, 1_000_000]), False, np.arange(100) * 9999)
    lines = _lines(skew_report(counts, ["cat", "ant"], whole=whole, state_bytes=8))
    assert lines[0] == (
        "about 6,000,000 training images of 2 classes on 1,000,000 clients (expected, not counted)"
    )
    assert any(line.startswith("9999 3 1.9") for line in lines)
    assert "and 999,980 clients more; those shown are drawn at random" in lines
    assert any(line.startswith("over 100 of 1,000,000 clients median") for line in lines)
    assert "whole: most frequent / rarest class 5.0" in lines
    assert any("have it" in line and "clients that" not in line for line in lines)
    assert "cat 5,000,000 83.3% 100" in lines
    assert "ant 1,000,000 16.7% 50" in lines
    assert lines[-1].startswith("a round sends 8 MB to 1,000,000 clients")
