"""How much work something is, counted instead of timed: seconds depend on what else a machine does."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import fedvision

_PACKAGE = str(Path(fedvision.__file__).parent)


def lines_of(work: Callable[[], object]) -> int:
    """Run something and return how many of fedvision's lines that took, a loop's as often as it goes round.

    What a library does within a call is one line, however much it is.
    """
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def peak_memory(work: Callable[[], object]) -> int:
    """Run something and return the most bytes that it held at a time, of Python's and of NumPy's memory."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
