"""The sentences of the live page, as a person reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from fedvision.watching import sentences


@pytest.fixture
def newfoundland(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock is 3.5 hours behind UTC in winter."""
    monkeypatch.setenv("TZ", "America/St_Johns")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ("2028-02-29 00:00:00", "00:00:00"),
        ("2028-02-29 23:59:59", "23:59:59"),
        ("2028-02-28 23:59:59", "2028-02-28 23:59"),
        ("2027-02-28 12:00:00", "2027-02-28 12:00"),
    ],
)
def test_a_time_of_another_day_has_its_date(newfoundland: None, then: str, expected: str) -> None:
    """The day is the machine's own: at 23:59 there, UTC has tomorrow's date."""

    def seconds(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("America/St_Johns")).timestamp()

    for now in ("2028-02-29 00:00:01", "2028-02-29 23:59:59"):
        assert sentences.at(seconds(then), seconds(now)) == expected
