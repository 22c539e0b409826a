"""A queue of experiments: its order, its states, and a server that runs it."""

from __future__ import annotations

import errno
import json
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from fedvision.cli import main as command
from fedvision.deployment.server import experiment_queue
from fedvision.deployment.server.experiment_queue import (
    ExperimentQueue,
    QueueEntry,
    as_json,
    free_folder,
)
from fedvision.errors import ConfigError, RunFolderError
from fedvision.runs.folder import RunFolder
from tests.deployment.server.machines import WAIT_S, Machines, digest, eventually, machines
from tests.deployment.server.test_deployment import EXPERIMENT
from tests.deployment.server.training_barrier import begun, hold, holding

ENTRY = QueueEntry(name="night", experiment='name = "night"\n', folder="/", modules="/", out="/runs/night")


def entry(name: str) -> QueueEntry:
    return replace(ENTRY, name=name, out=f"/runs/{name}")


def states(queue: ExperimentQueue) -> list[tuple[int, str, str]]:
    return [(one.number, one.name, one.status) for one in queue.entries()]


def test_experiments_run_in_the_order_in_which_they_were_added(tmp_path: Path) -> None:
    queue = ExperimentQueue(tmp_path / "queue")
    assert queue.entries() == []
    assert queue.next() is None
    for name in ("a", "b", "c"):
        queue.add(entry(name))
    first = queue.next()
    assert first == replace(entry("a"), number=1)
    running = queue.mark(first, "running")
    assert queue.next() == running, "a server that was killed goes on with it"
    assert running is not None
    queue.mark(running, "failed")
    assert states(queue) == [(1, "a", "failed"), (2, "b", "waiting"), (3, "c", "waiting")]
    second = queue.next()
    assert second is not None
    assert second.name == "b"


def test_an_entry_that_is_marked_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = ExperimentQueue(tmp_path)
    a, _ = queue.add(entry("a")), queue.add(entry("b"))
    read = experiment_queue.read_json

    def late(path: Path) -> dict[str, object]:
        if path.name == "0001.waiting.json":
            queue.mark(a, "running")
        return read(path)

    monkeypatch.setattr(experiment_queue, "read_json", late)
    assert states(queue) == [(1, "a", "running"), (2, "b", "waiting")]


def test_who_is_removed_does_not_run_and_who_runs_is_not_removed(tmp_path: Path) -> None:
    queue = ExperimentQueue(tmp_path)
    a, b = queue.add(entry("a")), queue.add(entry("b"))
    assert queue.remove(2).name == "b"
    assert queue.mark(b, "running") is None
    queue.mark(a, "running")
    with pytest.raises(ConfigError, match="experiment 1 is running; `fedvision stop /runs/a`"):
        queue.remove(1)
    with pytest.raises(ConfigError, match="there is no experiment 2"):
        queue.remove(2)
    assert queue.add(entry("c")).number == 2


def test_no_two_that_are_to_run_have_one_folder(tmp_path: Path) -> None:
    queue = ExperimentQueue(tmp_path)
    first = queue.add(ENTRY)
    with pytest.raises(ConfigError, match="name another one with --out"):
        queue.add(ENTRY)
    queue.mark(first, "stopped")
    assert queue.add(ENTRY).number == 2, "one that was stopped goes on"


def test_a_free_run_folder(tmp_path: Path) -> None:
    queue, runs = ExperimentQueue(tmp_path / "queue"), tmp_path / "runs"
    assert free_folder(queue, "night", runs) == runs / "night"
    (runs / "night").mkdir(parents=True)
    queue.add(replace(ENTRY, out=str(runs / "night-2")))
    assert free_folder(queue, "night", runs) == runs / "night-3"


def test_the_text_is_there_while_it_runs(tmp_path: Path) -> None:
    queue = ExperimentQueue(tmp_path)
    added = queue.add(ENTRY)
    with queue.begun(added) as file:
        assert file.read_text() == ENTRY.experiment
    assert not file.exists()
    assert states(queue) == [(1, "night", "waiting")]
    assert "experiment" not in json.loads(as_json(added))


def test_a_damaged_entry_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "0001.waiting.json").write_text('{"name": "x"}')
    with pytest.raises(RunFolderError, match="no experiment of a queue"):
        ExperimentQueue(tmp_path).entries()


def test_a_file_system_without_hard_links_holds_a_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(experiment_queue.os, "link", refuse)
    queue = ExperimentQueue(tmp_path / "queue")
    queue.add(entry("a"))
    queue.add(entry("b"))
    assert states(queue) == [(1, "a", "waiting"), (2, "b", "waiting")]
    assert queue.entries()[0] == replace(entry("a"), number=1)


def test_a_full_disk_leaves_the_queue_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = ExperimentQueue(tmp_path)
    queue.add(entry("a"))

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(experiment_queue, "replace_file", full)
        with pytest.raises(ConfigError, match="cannot be written: No space left"):
            queue.add(entry("b"))
    assert states(queue) == [(1, "a", "waiting")], "an empty entry would stop the server that reads it"
    assert queue.add(entry("b")).number == 2


def test_of_two_who_add_at_the_same_moment_the_second_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = ExperimentQueue(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "entries", list)  # it looked before the other one was done
        ExperimentQueue(tmp_path).add(entry("a"))
        with pytest.raises(ConfigError, match="somebody else adds an experiment right now; try again"):
            queue.add(entry("b"))
    assert states(queue) == [(1, "a", "waiting")]
    assert [path.name for path in tmp_path.iterdir()] == ["0001.waiting.json"]


class Queueing(Machines):
    """A server that runs a queue."""

    def serve(self) -> object:
        private, public = self._ports()
        self.public = public
        options = ["server", "--queue", str(self.folder / "queue"), "--tls", str(self.pki / "server")]
        options += ["--public", public, "--private", private, "--state", str(self.folder / "superlink")]
        return self._start("server", options, {})


@pytest.mark.long
def test_a_server_runs_a_queue_with_the_same_clients(
    tmp_path: Path, pki: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two experiments, a stop of the server in the middle of the second, and a third that is added later."""
    monkeypatch.chdir(tmp_path)
    text = EXPERIMENT.format(rounds=3, epochs=1, strategy="fedavg")
    with machines(tmp_path, pki, text) as plain:
        expected = plain.simulated()
    here = Queueing(tmp_path, pki, text)
    try:
        (tmp_path / "broken.toml").write_text(text.replace("lr = 0.1", "lr = 'fast'"))
        add = ["queue", "add", "queue", "--wait-for", "2"]
        assert command.main([*add, "experiment.toml", "broken.toml"]) == 2
        assert "training.lr must be a number" in capsys.readouterr().err
        assert not (tmp_path / "queue").exists(), "none of them is added"
        assert command.main([*add, "experiment.toml"]) == 0
        assert command.main([*add, "experiment.toml"]) == 0
        (tmp_path / "experiment.toml").write_text("rounds = [")  # what was added stays as it was
        server = here.serve()
        here.client("north")
        here.client("south", **holding(here, "south"))
        queue = ExperimentQueue(tmp_path / "queue")
        eventually(lambda: queue.entries()[0].status == "done", "the first is done")
        hold(here, "south", 2)
        eventually(lambda: begun(here, "south").count(2) == 2, "the second is in round 2")
        server.send_signal(signal.SIGTERM)  # type: ignore[attr-defined]
        hold(here, "south")
        assert server.wait(WAIT_S) == 130, here.log("server")  # type: ignore[attr-defined]
        assert [one.status for one in queue.entries()] == ["done", "waiting"]
        server = here.serve()
        eventually(lambda: queue.entries()[1].status == "done", "the second is done")
        assert [digest(tmp_path / name) for name in ("runs/two", "runs/two-2")] == [expected] * 2
        other = tmp_path / "other"
        other.mkdir()
        (other / "mine.py").write_text("from fedvision.algorithms.fedavg import FedAvg as Mine\n")
        later = text.replace('name = "two"', 'name = "later"').replace('"fedavg"', '"mine:Mine"')
        (other / "later.toml").write_text(later)
        assert command.main([*add, "other/later.toml"]) == 0
        eventually(lambda: queue.entries()[2].status == "done", "the third is done")
        folder = RunFolder.read(tmp_path / "runs/later")
        assert folder.summary()["status"] == "finished"
        assert folder.invocation()["modules"] == [str(other)], "where its plug-ins are found again"
        capsys.readouterr()
        assert command.main(["queue", "list", "queue"]) == 0
        assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()] == [
            ["1", "done", "two"],
            ["2", "done", "two"],
            ["3", "done", "later"],
        ]
        server.send_signal(signal.SIGTERM)  # type: ignore[attr-defined]
        assert server.wait(WAIT_S) == 130, here.log("server")  # type: ignore[attr-defined]
        assert "the queue is empty: waiting" in here.log("server")
    finally:
        here.end()


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"name":3,"experiment":[],"folder":null,"modules":1,"out":2,"wait_for":"x"}']
)
def test_a_damaged_entry_is_named_with_its_remedy(text: str, tmp_path: Path) -> None:
    (tmp_path / "0001.waiting.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"0001.waiting.json: this is no experiment .* remove the file"):
        ExperimentQueue(tmp_path).next()


def test_a_command_in_a_sentence_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    queue = ExperimentQueue(tmp_path)
    queue.mark(queue.add(replace(ENTRY, out="/runs/a b's")), "running")
    with pytest.raises(ConfigError, match="`fedvision stop ") as caught:
        queue.remove(1)
    assert shlex.split(str(caught.value).split("`")[1]) == ["fedvision", "stop", "/runs/a b's"]
