"""What an examination found: one line each, good, doubtful or bad."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from fedvision.errors import FedVisionError

Level = Literal["OK", "WARN", "FAIL"]
Lines = Iterator[tuple[Level, str]]


@dataclass
class CheckReport:
    """Lines in the order in which they were found.

    Args:
        title: First line of the page.
    """

    title: str
    lines: list[tuple[Level, str, str]] = field(default_factory=list)

    def run_check(self, topic: str, check: Lines) -> bool:
        """Run one check, a generator, and note what it says; an error of it is a bad line, not the end.

        Returns:
            Whether no line of it is bad.
        """
        before = len(self.lines)
        try:
            for level, text in check:
                self.lines.append((level, topic, text))
        except FedVisionError as error:
            self.lines.append(("FAIL", topic, str(error)))
        except Exception as error:  # A plug-in or a driver can raise anything; the other checks go on.
            self.lines.append(("FAIL", topic, f"the check broke down: {type(error).__name__}: {error}"))
        return all(level != "FAIL" for level, _, _ in self.lines[before:])

    @property
    def failures(self) -> int:
        """Number of bad lines."""
        return sum(level == "FAIL" for level, _, _ in self.lines)

    def text(self) -> str:
        """Return the page."""
        width = max((len(topic) for _, topic, _ in self.lines), default=0)
        body = [f"{level:<4}  {topic:<{width}}  {text}" for level, topic, text in self.lines]
        return "\n".join([self.title, *body])
