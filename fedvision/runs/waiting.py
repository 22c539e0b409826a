"""For whom a run across machines waits: a file in the run folder, which ``fedvision status`` reads.

It is there while the server waits. One that a killed server left says nothing of a run that is over.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fedvision.files import replace_file

FILE = "waiting.txt"
"""Its name in a run folder: one line."""


def note_waiting(path: Path, text: str) -> None:
    """Write down for whom a run waits, or with an empty text that it does not; a full disk changes nothing.

    Args:
        path: The run folder.
        text: One line.
    """
    with suppress(OSError):
        if text:
            replace_file(path / FILE, text + "\n", sync=False)
        else:
            (path / FILE).unlink(missing_ok=True)


def read_waiting(path: Path) -> str:
    """Return for whom the run in a folder waits; "" where it does not."""
    try:
        return (path / FILE).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
