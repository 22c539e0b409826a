"""What is relied upon of Ray's private names: they exist, and a run starts without what they start."""

from __future__ import annotations

import subprocess
import sys

import ray._private.node

from fedvision.engines.ray_internals import UNUSED, without_daemons

COUNT = """
import os, ray
from fedvision.engines.ray_internals import without_daemons
with without_daemons():
    ray.init(address="local", include_dashboard=False, num_cpus=1, logging_level="ERROR", log_to_driver=False)
print(ray.get(ray.remote(lambda: 6 * 7).remote()))
names = []
for process in filter(str.isdigit, os.listdir("/proc")):
    try:
        status = open(f"/proc/{process}/stat").read().rsplit(")", 1)[1].split()
        if int(status[1]) == os.getpid():
            names.append(open(f"/proc/{process}/cmdline").read().replace("\\0", " "))
    except OSError:
        pass
print(sum("gcs_server" in name for name in names), sum("raylet" in name for name in names), len(names))
ray.shutdown()
"""


def test_the_methods_are_there() -> None:
    assert all(callable(getattr(ray._private.node.Node, name)) for name in UNUSED)


def test_they_come_back() -> None:
    before = [getattr(ray._private.node.Node, name) for name in UNUSED]
    with without_daemons():
        assert all(
            getattr(ray._private.node.Node, name) is not method
            for name, method in zip(UNUSED, before, strict=True)
        )
    assert [getattr(ray._private.node.Node, name) for name in UNUSED] == before


def test_a_ray_of_ones_own_is_a_store_and_a_scheduler_that_works() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True)
    answer, processes = done.stdout.splitlines()[-2:]
    assert answer == "42"
    servers, raylets, children = map(int, processes.split())
    assert servers == 1
    assert raylets >= 1
    assert children == 2
