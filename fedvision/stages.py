"""What a program is busy with before its first round, reported with the seconds so far.

Imports, decoding and the start of workers take seconds in which nothing else is shown. Whatever begins such
work says so with ``stage``; a program that wants to show it follows, as the command line does. Nobody follows
in a worker's process or where fedvision is used from Python, and then nothing is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_followers: list[Callable[[str], None]] = []


def follow(on_stage: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
    """Report every stage from now on, in place of whoever followed before; one that is repeated only once.

    Args:
        on_stage: Takes a line such as ``"  3.2 s  reading the data"``: the seconds since this call, and what
            begins now.
        clock: Returns seconds.
    """
    began, last = clock(), ""

    def report(text: str) -> None:
        nonlocal last
        if text != last:
            on_stage(f"{clock() - began:5.1f} s  {text}")
        last = text

    _followers[:] = [report]


def unfollow() -> None:
    """Report to nobody from now on."""
    _followers.clear()


def stage(text: str) -> None:
    """Say what begins now, in a few words, where somebody follows."""
    for report in _followers:
        report(text)
