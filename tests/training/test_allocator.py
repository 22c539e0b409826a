"""Freed memory stays: the pages of a large block are faulted in once and not at every use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fedvision.training.allocator import keep_freed_memory

# 40 MiB are above every threshold that glibc finds by itself.
SCRIPT = """
import resource, sys
from fedvision.training.allocator import keep_freed_memory
supported = keep_freed_memory() if sys.argv[1] == "keep" else False
bytearray(40 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    bytearray(40 << 20)
print(supported, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    """Return whether the setting was made and the page faults of five blocks."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean)
    supported, count = done.stdout.split()
    return supported, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the thresholds are glibc's")
def test_pages_of_a_freed_block_are_used_again() -> None:
    supported, faults_kept = faults("keep")
    if supported == "False":
        pytest.skip("the C library has no mallopt")
    assert faults_kept < 100
    assert faults("leave")[1] > 10 * max(1, faults_kept)


def test_the_users_own_thresholds_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()
