"""The meter against processes whose memory, time and offspring are known."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from meter import MARK, CommandFailed, measure, proportional_memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")

ALONE = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
# A child that leaves its parent and outlives it, as Ray's daemons do.
DAEMON = """
import json, os, sys, time
held = bytearray(64 << 20)
if os.fork() == 0:
    os.setsid()
    more = bytearray(80 << 20)
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(60)
time.sleep(1.2)
print("noise"); print("RESULT " + json.dumps({"loop_s": 1.5}))
"""
WORK = """
import time
while time.process_time() < 1.0: pass
print('RESULT {"loop_s": 1}')
"""


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-c", script, *arguments]


def test_memory_is_that_of_the_tree_and_nothing_outlives_it(tmp_path: Path) -> None:
    found = measure(python(DAEMON, str(tmp_path / "daemon")), ALONE)
    assert found["loop_s"] == 1.5
    # 64 MB that two processes share count once, 80 MB of the daemon beside them.
    assert 144 <= found["pss_mb"] < 190
    daemon = int((tmp_path / "daemon").read_text())
    deadline = time.monotonic() + 60
    while Path(f"/proc/{daemon}/smaps_rollup").exists() and proportional_memory(daemon):
        assert time.monotonic() < deadline, "the daemon is still there"
        time.sleep(0.05)


def test_processor_time_is_the_trees_and_the_rest_is_others() -> None:
    found = measure(python(WORK), ALONE)
    assert 0.7 <= found["cpu_s"] <= 1.5
    assert found["process_s"] >= found["cpu_s"] - 0.1
    assert 0 <= found["others"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "timeout", "sentence"),
    [
        ("import sys; print('the cause'); sys.exit(3)", 60.0, "ended with code 3"),
        ("print('the cause')", 60.0, "printed no result"),
        ("import time; print('the cause', flush=True); time.sleep(600)", 4.0, "took too long"),
    ],
)
def test_a_command_without_a_result_has_a_reason(script: str, timeout: float, sentence: str) -> None:
    with pytest.raises(CommandFailed, match=f"(?s){sentence}.*the cause"):
        measure(python(script), ALONE, timeout=timeout)


def test_only_marked_processes_belong_to_the_tree() -> None:
    script = f"import os; print('RESULT {{\"mark\": \"%s\"}}' % os.environ['{MARK}'])"
    marks = {measure(python(script), ALONE)["mark"] for _ in range(2)}
    assert len(marks) == 2
