"""What is repeated of another's error: its first line, and its class."""

from __future__ import annotations

import pytest

from fedvision.errors import LONGEST, first_line, with_kind


@pytest.mark.parametrize(
    ("said", "first", "whole"),
    [
        ("it broke. \n at line 3\n", "it broke.", "ValueError: it broke."),
        ("\n\n  it broke", "it broke", "ValueError: it broke"),
        (" \n", "ValueError", "ValueError"),
        ("", "ValueError", "ValueError"),
        ("x" * 999, "x" * LONGEST, f"ValueError: {'x' * LONGEST}"),
    ],
)
def test_an_error_is_repeated_by_its_first_line(said: str, first: str, whole: str) -> None:
    assert (first_line(ValueError(said)), with_kind(ValueError(said))) == (first, whole)
