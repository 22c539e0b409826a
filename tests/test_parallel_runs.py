"""Runs in processes of their own: the bits of sequential runs, every way to end, nothing left behind."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvision import cores, devices, memory, parallel_runs, simulate, simulate_sweep, sweep_runner
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, RunFolderError
from fedvision.plugin_folder import allow_folder
from fedvision.runs.displays import ParallelDisplays
from fedvision.runs.folder import RunFolder
from fedvision.sweep import Sweep
from fedvision.types import PluginSpec
from tests.experiments import tiny

LOSSES = """
import os, signal, time, torch
class InTraining(torch.nn.CrossEntropyLoss):
    calls = 0  # The first is the check of an experiment before its run.
    def __init__(self):
        super().__init__(reduction="none")
    def forward(self, outputs, targets):
        type(self).calls += 1
        if self.calls > 3:
            self.happen()
        return super().forward(outputs, targets)
class Failing(InTraining):
    def happen(self):
        raise ValueError("no loss today")
class Killed(InTraining):
    def happen(self):
        os.kill(os.getpid(), signal.SIGKILL)
class Slow(InTraining):
    def happen(self):
        time.sleep(0.1)
"""


def sweep(**experiments: ExperimentConfig) -> Sweep:
    return Sweep(name="s", experiments=experiments)


def loss(name: str, **tables: Any) -> ExperimentConfig:
    return tiny(loss={"use": f"parallel_losses:{name}"}, **tables)


@pytest.fixture
def losses(tmp_path: Path) -> Path:
    """A folder with losses, in which every process may look for plug-ins."""
    (tmp_path / "parallel_losses.py").write_text(LOSSES)
    allow_folder(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_parallel_runs_have_the_files_of_sequential_ones(tmp_path: Path) -> None:
    configs = {f"seed{seed}": tiny(seed=seed, rounds=2) for seed in range(2)}
    stream = io.StringIO()
    done = simulate_sweep(sweep(**configs), out=tmp_path / "both", jobs=2, progress=stream)
    assert (list(done.results), done.failures) == (list(configs), {})
    assert done.comparison == tmp_path / "both/comparison.html"
    for label, config in configs.items():
        alone = simulate(config, out=tmp_path / label)
        assert done.results[label].rounds == alone.rounds
        state = done.results[label].state
        assert state.keys() == alone.state.keys()
        assert all(torch.equal(state[name], alone.state[name]) for name in state)
        shown = [line for line in stream.getvalue().splitlines() if line.startswith(f"{label}: round ")]
        assert len(shown) == 2


@pytest.mark.slow
def test_a_failed_run_and_a_killed_one_leave_the_others(losses: Path) -> None:
    runs = sweep(failing=loss("Failing"), killed=loss("Killed"), good=loss("Slow", rounds=1))
    done = simulate_sweep(runs, out=losses / "out", jobs=2)
    assert list(done.results) == ["good"]
    assert "no loss today" in str(done.failures["failing"])
    assert "killed by signal 9" in str(done.failures["killed"])
    assert "--resume" in str(done.failures["killed"])
    assert done.comparison is None


@pytest.mark.slow
def test_folder_of_another_experiment_in_a_sweep(tmp_path: Path) -> None:
    """A folder of another experiment is an error after the runs that go on."""
    simulate(tiny(seed=1, rounds=1), out=tmp_path / "out/b")
    runs = sweep(a=tiny(rounds=1), b=tiny(seed=2, rounds=1), c=tiny(rounds=1), d=tiny(rounds=1))
    with pytest.raises(RunFolderError, match="out/b"):
        simulate_sweep(runs, out=tmp_path / "out", jobs=2)
    assert RunFolder.read(tmp_path / "out/a").summary()["status"] == "finished"
    assert not (tmp_path / "out/d").exists()


def test_a_wrong_experiment_is_an_error_before_the_first_process(tmp_path: Path) -> None:
    wrong = tiny(partition={"use": "iid", "clients": 99_999})
    with pytest.raises(ConfigError):
        simulate_sweep(sweep(a=tiny(), b=wrong), out=tmp_path / "out", jobs=2)
    assert not (tmp_path / "out").exists()


def _statuses(out: Path) -> dict[str, str]:
    summaries = [json.loads(path.read_text()) for path in sorted(out.glob("*/summary.json"))]
    return {
        path.parent.name: page["status"]
        for path, page in zip(sorted(out.glob("*/summary.json")), summaries, strict=True)
    }


def _begun(losses: Path) -> subprocess.Popen[str]:
    """Start a sweep of slow runs as a command, and return it once both have recorded a round."""
    (losses / "sweep.toml").write_text(loss("Slow", rounds=200).to_toml() + "\n[sweep]\nseed = [1, 2, 3]\n")
    command = [sys.executable, "-m", "fedvision.cli.main", "simulate", "sweep.toml", "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "--engine", "serial", "--out", "out"], cwd=losses, stderr=subprocess.PIPE, text=True
    )
    logs = [losses / f"out/seed{seed}/rounds.jsonl" for seed in (1, 2)]
    while not all(log.exists() and log.stat().st_size for log in logs):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    return process


def _workers(parent: int) -> set[int]:
    """Return the processes whose ancestor is a process."""
    children: dict[int, set[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), set()).add(int(status.parent.name))
    found: set[int] = set()
    left = [parent]
    while left:
        new = children.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def _wait_for_the_end_of(processes: set[int]) -> None:
    """Return once none of them runs any more; the test's own time limit is what ends the waiting."""
    while any(_runs(process) for process in processes):
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("to", ["group", pytest.param("process", marks=pytest.mark.long)])
def test_interrupted_runs_stop_where_they_can_go_on(losses: Path, to: str) -> None:
    """Ctrl-C reaches a terminal's whole process group; ``kill`` reaches the one process."""
    process = _begun(losses)
    workers = _workers(process.pid)
    assert len(workers) >= 3
    if to == "group":
        for pid in (process.pid, *workers):
            os.kill(pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    _, shown = process.communicate()
    assert process.returncode == 130
    assert (
        shown.splitlines()[-1]
        == "fedvision: stopped; the same command with --resume goes on from the last round"
    )
    assert "Traceback" not in shown
    assert _statuses(losses / "out") == {"seed1": "stopped", "seed2": "stopped"}
    _wait_for_the_end_of(workers)


@pytest.mark.long
def test_runs_end_with_their_parent(losses: Path) -> None:
    process = _begun(losses)
    workers = _workers(process.pid)
    process.kill()
    process.communicate()
    _wait_for_the_end_of(workers)
    assert set(_statuses(losses / "out").values()) == {"stopped"}


def test_a_run_whose_parent_is_gone_is_interrupted() -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    ours.close()
    with pytest.raises(KeyboardInterrupt):
        parallel_runs._SentDisplay(theirs).message("a round")


def test_a_display_of_several_runs_in_a_log(tmp_path: Path) -> None:
    stream = io.StringIO()
    with ParallelDisplays(stream) as displays:
        one, other = displays.of("one"), displays.of("other")
        one.begin(2, 0)
        other.message("a notice")
        one.round(1, 2, "loss 1.0", "1 s", "2 s")
        one.clients(2, 1, 3)
        one.end()
    assert stream.getvalue().splitlines() == ["other: a notice", "one: round 1/2  loss 1.0  1 s, 2 s left"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_display_of_several_runs_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with ParallelDisplays(stream) as displays:
        one, other = displays.of("one [b]"), displays.of("other")
        one.begin(2, 0)
        other.begin(4, 1)
        one.round(2, 2, "loss 1.0", "1 s", "2 s")
        one.end()
        one.end()
        other.round(3, 4, "loss 2.0", "1 s", "2 s")
    assert "one [b]: loss 1.0" in stream.getvalue()
    last = stream.getvalue().rpartition("one [b]: loss 1.0")[2]
    assert "other" in last
    assert "3/4" in last
    assert "one" not in last.rpartition("\x1b[2K")[2]


@pytest.mark.parametrize(
    ("engine", "tables", "useful"),
    [
        (PluginSpec(use="auto"), {}, 6),
        (PluginSpec(use="serial"), {}, 6),
        (PluginSpec(use="ray"), {}, 1),
        (PluginSpec(use="vectorized"), {}, 1),
        (PluginSpec(use="auto", args={"workers": 2}), {}, 1),
        (PluginSpec(use="auto"), {"training": {"device": "cuda"}}, 1),
        (PluginSpec(use="auto"), {"training": {"device": "cpu"}}, 6),
    ],
)
def test_runs_at_a_time_by_engine_and_device(
    monkeypatch: pytest.MonkeyPatch, engine: PluginSpec, tables: dict[str, Any], useful: int
) -> None:
    monkeypatch.setattr(cores, "available", lambda: 6)
    configs = {"a": tiny(seed=1), "b": tiny(seed=2, **tables)}
    assert sweep_runner._useful(configs, engine, 1) == useful
    assert sweep_runner._useful(configs, engine, 3) == max(1, useful // 3)
    assert sweep_runner._useful({"a": configs["a"]}, engine, 1) == 1


def test_runs_on_a_gpu_are_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for device, on_processor in (("cpu", True), ("cuda", False), ("mps", False)):
        monkeypatch.setattr(devices, "choose_device", lambda name, device=device: torch.device(device))
        assert sweep_runner._on_processor({"auto", "cpu"}) == on_processor
        assert sweep_runner._on_processor({"cpu"})


def test_runs_at_a_time_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    each = sweep_runner.PROCESS_BYTES + 1000 + 8 * 50
    for free, affordable in ((0, 1), (each, 1), (2 * each - 1, 1), (2 * each, 2), (99 * each, 4), (None, 4)):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        assert sweep_runner._affordable(4, [(10, 5), (1000, 50)]) == affordable


def test_engines_that_choose_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available", lambda: 8)
    assert sweep_runner._shared(PluginSpec(use="auto"), 3).args == {"workers": 2}
    assert sweep_runner._shared(PluginSpec(use="auto"), 99).args == {"workers": 1}
    assert sweep_runner._shared(PluginSpec(use="auto", args={"workers": 5}), 3).args == {"workers": 5}
    assert sweep_runner._shared(PluginSpec(use="serial"), 3).args == {}


def test_a_negative_number_of_jobs_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs must be >= 0, not -1"):
        simulate_sweep(sweep(a=tiny()), out=tmp_path / "out", jobs=-1)
