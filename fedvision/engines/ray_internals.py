"""The names of Ray that are not public, in one place; ``tests/engines/test_ray_internals.py`` holds them.

A Ray that is started for one run needs its store, its scheduler and its workers. ``ray.init`` also starts an
autoscaler's monitor, a server for the dashboard and the job API, and a reader of log files that nobody asked
for: 150 MB, and seconds of processor time while the workers start. No argument leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray._private.node

UNUSED = ("start_monitor", "start_api_server", "start_log_monitor")
"""Methods of a node that start what a single run does not need."""


@contextmanager
def without_daemons() -> Iterator[None]:
    """Let a ``ray.init`` inside start no more than a run needs; a Ray with other names starts all it has."""
    node: Any = ray._private.node.Node
    found = {name: getattr(node, name) for name in UNUSED if hasattr(node, name)}
    try:
        for name in found:
            setattr(node, name, _nothing)
        yield
    finally:
        for name, method in found.items():
            setattr(node, name, method)


def _nothing(node: object, *arguments: object, **options: object) -> None:
    """Stand in for a method that starts a process."""
