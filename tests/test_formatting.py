"""Numbers in words, at the places where a unit changes."""

from __future__ import annotations

import pytest

from fedvision import formatting


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (532_000_000, "532 MB"),
        (1.06e9, "1.06 GB"),
        (2.5e12, "2.5 TB"),
        (2.5e15, "2.5e+03 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert formatting.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.416, "0.42 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_shares_and_numbers() -> None:
    assert formatting.percent(0.8423) == "84.2%"
    assert formatting.percent(1, 0) == "100%"
    assert formatting.percent(None) == formatting.number(None) == "–"
    assert formatting.number(0.12345) == "0.123"
    assert formatting.whole(1234567) == "1,234,567"


def test_plurals() -> None:
    assert formatting.plural(1, "client") == "1 client"
    assert formatting.plural(0, "client") == "0 clients"
    assert formatting.plural(1, "repl", "ies", "y") == "1 reply"
    assert formatting.plural(2000, "repl", "ies", "y") == "2,000 replies"


def test_scores_stand_in_the_usual_order_with_plugins_last() -> None:
    keys = {"zeta", "tail", "accuracy", "kappa", "macro_f1"}
    assert formatting.in_order(keys) == ["accuracy", "macro_f1", "tail", "kappa", "zeta"]
    assert formatting.score_name("balanced_accuracy") == "balanced accuracy"
    assert formatting.score_name("my_score") == "my score"
