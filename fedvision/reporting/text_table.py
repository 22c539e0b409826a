"""Tables as plain text that never cut a number: what does not fit beside stands below, named again."""

from __future__ import annotations

import io
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table

GAP = 3
"""Columns of space between two columns of a table."""


class TextTable:
    """A table whose first column holds words and whose others hold numbers.

    Args:
        heads: Heads of the columns; a head takes several lines where that keeps its column narrow.
        keys: How many of the first columns name a row; they stand in every part of a table that is too wide.
    """

    def __init__(self, *heads: str, keys: int = 1) -> None:
        self._heads, self._keys = heads, keys
        self._rows: list[Sequence[str]] = []

    def add(self, *cells: str) -> None:
        """Add a row with a cell for each head."""
        if len(cells) != len(self._heads):
            raise ValueError(f"a row must have {len(self._heads)} cells, not {len(cells)}")
        self._rows.append(cells)

    def tables(self, width: int) -> Iterator[Table]:
        """Yield the table in parts at most ``width`` wide, or as narrow as a single number allows."""
        widths = [self._width(place) for place in range(len(self._heads))]
        room = width - sum(min(widths[place], width // 2) + GAP for place in range(self._keys))
        part: list[int] = []
        for place in range(self._keys, len(self._heads)):
            if part and sum(widths[p] + GAP for p in [*part, place]) - GAP > room:
                yield self._table(part, widths)
                part = []
            part.append(place)
        yield self._table(part, widths)

    def _width(self, place: int) -> int:
        """Return a column's width: its longest cell, or what its head needs in two lines."""
        head = self._heads[place]
        longest = max(cell_len(text) for text in [*head.split(), *(row[place] for row in self._rows), " "])
        while len(textwrap.wrap(head, longest)) > 2:
            longest += 1
        return longest

    def _table(self, part: Sequence[int], widths: Sequence[int]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
        for place in (*range(self._keys), *part):
            if place == 0:
                table.add_column(self._heads[0], overflow="fold", vertical="bottom")
            else:
                minimum = widths[place]
                table.add_column(self._heads[place], justify="right", min_width=minimum, max_width=minimum)
        for row in self._rows:
            table.add_row(*(row[place] for place in (*range(self._keys), *part)))
        return table


def plain_text(*parts: str | TextTable) -> str:
    """Return sentences and tables as text, as wide as the terminal, or 120 where there is none."""
    width = max(shutil.get_terminal_size((120, 24)).columns, 40)
    buffer = io.StringIO()
    # What people named (classes, runs, reasons) is text and no markup.
    console = Console(file=buffer, width=width, markup=False, emoji=False, highlight=False, no_color=True)
    for part in parts:
        shown: Sequence[RenderableType] = [part] if isinstance(part, str) else list(part.tables(width))
        for place, table in enumerate(shown):
            console.print(*([""] if place else []), table, sep="\n")
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
