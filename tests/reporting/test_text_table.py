"""Text tables: no number is ever cut, whatever the width."""

from __future__ import annotations

import pytest

from fedvision.reporting.text_table import TextTable, plain_text


@pytest.mark.parametrize("width", [40, 60, 90, 200])
def test_every_number_and_name_is_there_at_any_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    heads = [f"balanced score {i}" for i in range(9)]
    sheet = TextTable("name", "n", *heads, keys=2)
    for row in range(3):
        sheet.add(f"a rather long name of row {row}", str(row), *(f"{row}{i}.25 ± 0.1%" for i in range(9)))
    text = plain_text(sheet)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in range(3):
        for i in range(9):
            assert f"{row}{i}.25 ± 0.1%" in text
    parts = text.split("\n\n")
    assert (len(parts) == 1) == (width == 200)
    assert all("name" in part for part in parts)


def test_columns_are_aligned_and_heads_wrap() -> None:
    sheet = TextTable("class", "training images", "recall")
    sheet.add("cat", "1,000", "50.0%")
    sheet.add("ant", "2", "–")
    assert plain_text("One.", sheet).splitlines() == [
        "One.",
        "        training",
        "class     images   recall",
        "─────────────────────────",
        "cat        1,000    50.0%",
        "ant            2        –",
    ]


def test_names_are_no_markup() -> None:
    sheet = TextTable("[bold]class", "n")
    sheet.add("[red]:smile:[/red]", "1")
    text = plain_text("[b]x[/b]", sheet)
    assert "[b]x[/b]" in text
    assert "[bold]class" in text
    assert "[red]:smile:[/red]" in text
    assert "\x1b" not in text


def test_a_row_must_fit_the_heads() -> None:
    with pytest.raises(ValueError, match="2 cells, not 1"):
        TextTable("a", "b").add("x")
