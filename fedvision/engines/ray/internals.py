"""The names of Ray that are not public, in one place; ``tests/engines/ray/test_internals.py`` holds them.

A Ray that is started for one run needs its store, its scheduler and its workers. ``ray.init`` also starts an
autoscaler's monitor, a server for the dashboard and the job API, a reader of log files, and two agents that
serve the dashboard and install packages for workers: 250 MB, and seconds before the first worker is there. No
argument leaves them out. The scheduler insists on the agents; ``agent.py`` stands in for them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray._private.node
import ray._private.ray_constants
import ray._private.services
import ray._raylet

UNUSED = ("start_monitor", "start_api_server", "start_log_monitor")
"""Methods of a node that start what a single run does not need."""
AGENTS = {
    "--dashboard_agent_command": ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port"),
    "--runtime_env_agent_command": ("runtime_env_agent_port",),
}
"""Arguments of the scheduler that start an agent, and the files to which it writes its ports."""
START, RAYLET = "start_ray_process", "raylet"
UV = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
"""Ray would have its workers' packages installed anew where the program was started by ``uv run``."""
_ENVIRONMENTS = ("RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""With these set somebody wants workers with packages of their own, and the agents have work."""


@contextmanager
def without_daemons() -> Iterator[None]:
    """Let a ``ray.init`` inside start no more than a run needs; a Ray with other names starts all it has."""
    with ExitStack() as back:
        for name in UNUSED:
            _replace(back, ray._private.node.Node, name, lambda _: _nothing)
        if not any(name in os.environ for name in _ENVIRONMENTS) and _waits_for_files():
            _replace(back, ray._private.ray_constants, UV, lambda _: False)
            _replace(back, ray._private.services, START, _with_stand_ins)
        yield


@contextmanager
def own_signals() -> Iterator[None]:
    """Keep this process's way with Ctrl-C and SIGTERM through a ``ray.init`` inside, which puts in its own.

    Ray's prints a stack trace from C++ and aborts, so that nothing of the run is closed or written.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # what was not set from Python cannot be set again
                    signal.signal(number, handler)


def _replace(back: ExitStack, owner: Any, name: str, made: Callable[[Any], Any]) -> None:
    """Put something else under a name until ``back`` is closed, where the name is known."""
    if hasattr(owner, name):
        found = getattr(owner, name)
        back.callback(setattr, owner, name, found)
        setattr(owner, name, made(found))


def _waits_for_files() -> bool:
    """Return whether this Ray's scheduler reads its agents' ports from files of these names."""
    known = {getattr(ray._raylet, name) for name in dir(ray._raylet) if name.endswith("_PORT_NAME")}
    return hasattr(ray._raylet, "persist_port") and all(known.issuperset(names) for names in AGENTS.values())


def _nothing(node: object, *arguments: object, **options: object) -> None:
    """Stand in for a method that starts a process."""


def _with_stand_ins(start: Callable[..., Any]) -> Callable[..., Any]:
    def started(command: Sequence[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        if process_type == RAYLET:
            command = stand_ins(command)
        return start(command, process_type, *arguments, **options)

    return started


def stand_ins(command: Sequence[str]) -> list[str]:
    """Return the scheduler's command line with other programs for its agents."""
    options = dict(argument.split("=", 1) for argument in command if "=" in argument)
    folder, node = options.get("--session_dir"), options.get("--node_id")
    if not folder or not node:
        return list(command)
    program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("agent.py")), folder, node]
    agents = {name: subprocess.list2cmdline([*program, *ports]) for name, ports in AGENTS.items()}
    names = [argument.split("=", 1)[0] for argument in command]
    return [
        f"{name}={agents[name]}" if name in agents else argument
        for name, argument in zip(names, command, strict=True)
    ]
