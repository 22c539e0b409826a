"""What is relied upon of Ray's private names: they exist, and a run starts without what they start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray._private.node
import ray._private.ray_constants
import ray._private.services
import ray._raylet

from fedvision.engines.ray.internals import AGENTS, RAYLET, START, UNUSED, UV, stand_ins, without_daemons

NAMES: list[tuple[Any, str]] = [
    *((ray._private.node.Node, name) for name in UNUSED),
    (ray._private.ray_constants, UV),
    (ray._private.services, START),
]
NODE, OTHER = "4f" * 28, "4e" * 28
COUNT = """
import os, ray
from fedvision.engines.ray.internals import without_daemons
with without_daemons():
    ray.init(address="local", include_dashboard=False, num_cpus=1, logging_level="ERROR", log_to_driver=False)
print(ray.get(ray.remote(lambda: 6 * 7).remote()))
names, ours = [], {os.getpid()}
for process in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
    try:
        status = open(f"/proc/{process}/stat").read().rsplit(")", 1)[1].split()
        if int(status[1]) in ours:
            ours.add(int(process))
            names += map(os.path.basename, open(f"/proc/{process}/cmdline").read().split("\\0")[:4:3])
    except OSError:
        pass
for part in ("gcs_server", "raylet", "agent.py", "ray::DashboardAgent", "ray::RuntimeEnvAgent"):
    print(names.count(part))
ray.shutdown()
"""


def test_the_names_are_there() -> None:
    assert all(hasattr(owner, name) for owner, name in NAMES)
    assert ray._private.ray_constants.PROCESS_TYPE_RAYLET == RAYLET
    ports = {name for names in AGENTS.values() for name in names}
    known = {getattr(ray._raylet, name) for name in dir(ray._raylet) if name.endswith("_PORT_NAME")}
    assert ports == known - {ray._raylet.GCS_SERVER_PORT_NAME}


def test_they_come_back() -> None:
    before = [getattr(owner, name) for owner, name in NAMES]
    with without_daemons():
        assert all(
            getattr(owner, name) is not found for (owner, name), found in zip(NAMES, before, strict=True)
        )
    assert [getattr(owner, name) for owner, name in NAMES] == before


def test_agents_with_other_arguments_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray._raylet, "METRICS_AGENT_PORT_NAME", "another")
    start = ray._private.services.start_ray_process
    with without_daemons():
        assert ray._private.services.start_ray_process is start


@pytest.mark.parametrize("name", ["RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR"])
def test_who_wants_environments_for_workers_keeps_the_agents(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "somebody's")
    start = ray._private.services.start_ray_process
    with without_daemons():
        assert ray._private.services.start_ray_process is start


def test_other_arguments_of_the_command_are_unchanged() -> None:
    argv = [
        "raylet",
        "--head",
        "--session_dir=/s",
        "--node_id=4f",
        "--labels={}",
        *(f"{a}=x y" for a in AGENTS),
    ]
    made = stand_ins(argv)
    assert made[:5] == argv[:5]
    assert [argument.split("=")[0] for argument in made[5:]] == list(AGENTS)
    assert made[6].split()[-3:] == ["/s", "4f", "runtime_env_agent_port"]
    assert stand_ins(["raylet", "--agent=x"]) == ["raylet", "--agent=x"], "another Ray starts all it has"


@pytest.mark.slow
def test_a_ray_of_ones_own_is_a_store_and_a_scheduler_that_works() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True)
    assert done.stdout.split()[:1] == ["42"]
    assert done.stdout.split()[-5:] == ["1", "1", "2", "0", "0"]


@pytest.mark.slow
def test_a_stand_in_writes_its_ports_and_goes_with_its_parent(tmp_path: Path) -> None:
    agent = stand_ins(
        ["raylet", f"--session_dir={tmp_path}", f"--node_id={NODE}", "--runtime_env_agent_command=x"]
    )[-1]
    command = agent.split("=", 1)[1]
    parent = subprocess.Popen(["sh", "-c", f"{command} & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    file = tmp_path / f"runtime_env_agent_port_{NODE}"
    _until(file.exists)
    ray._raylet.persist_port(str(tmp_path), OTHER, ray._raylet.RUNTIME_ENV_AGENT_PORT_NAME, -1)
    assert file.read_text() == (tmp_path / f"runtime_env_agent_port_{OTHER}").read_text()
    assert os.path.exists(f"/proc/{child}")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _until(lambda: not os.path.exists(f"/proc/{child}"))


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
