"""The first line of a command that takes long, and what it is busy with after that."""

from __future__ import annotations

import argparse
from functools import partial

from fedvision import __version__, log_format, stages
from fedvision.streams import complain


def announce(what: str) -> None:
    """Say on standard error what is begun, and from then on each stage with the seconds so far.

    Standard output is for what was asked for, and in a log file these lines tell what a run waited for, so
    they are written whether or not standard error is a terminal.

    Args:
        what: The file that was read and what it asks for, in a few words.
    """
    complain(f"fedvision {__version__}: {what}", kind="stage")
    stages.follow(partial(complain, kind="stage"))


def add_log_format(parser: argparse.ArgumentParser) -> None:
    """Add the option to a verb that runs for long; the command line heeds it for every verb that has it."""
    parser.add_argument(
        "--log-format",
        choices=log_format.FORMATS,
        default="text",
        help="of standard error: text, or json, an object a line (default: text)",
    )
