"""The page: one line a finding, and a broken check is a bad line instead of an end."""

from __future__ import annotations

from fedvision.deployment.client.check_report import CheckReport, Lines
from fedvision.errors import DataError


def good(text: str) -> Lines:
    yield "OK", text
    yield "WARN", "but slowly"


def wrong() -> Lines:
    yield "OK", "so far"
    raise DataError("images are missing")


def broken() -> Lines:
    yield "OK", "then"
    raise ZeroDivisionError("by zero")


def test_a_page_lines_up_and_counts_what_is_bad() -> None:
    found = CheckReport("title")
    assert found.run_check("server", good("answers"))
    assert not found.run_check("images", wrong())
    assert not found.run_check("x", broken())
    assert found.failures == 2
    assert found.text().splitlines() == [
        "title",
        "OK    server  answers",
        "WARN  server  but slowly",
        "OK    images  so far",
        "FAIL  images  images are missing",
        "OK    x       then",
        "FAIL  x       the check broke down: ZeroDivisionError: by zero",
    ]
