"""The first line of a command that takes long, and what it is busy with after that."""

from __future__ import annotations

from fedvision import __version__, stages
from fedvision.streams import complain


def announce(what: str) -> None:
    """Say on standard error what is begun, and from then on each stage with the seconds so far.

    Standard output is for what was asked for, and in a log file these lines tell what a run waited for, so
    they are written whether or not standard error is a terminal.

    Args:
        what: The file that was read and what it asks for, in a few words.
    """
    complain(f"fedvision {__version__}: {what}")
    stages.follow(complain)
