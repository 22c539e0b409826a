"""Who reached the port: written by the SuperLink's process, read while it is written and set aside."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from fedvision.deployment.server import server_log
from fedvision.deployment.server.access_log import FILE, AccessHandler, AccessReader
from fedvision.deployment.server.audit_trail import AuditTrail
from fedvision.deployment.server.deployment import Deployment
from fedvision.deployment.server.options import SuperlinkOptions
from fedvision.deployment.server.server_log import RepeatFilter
from fedvision.deployment.server.superlink_process import SuperlinkProcess
from fedvision.errors import ConfigError, RunError
from fedvision.experiment import Experiment
from fedvision.runs.audit_log import FILE as AUDIT
from fedvision.runs.audit_log import read_audit
from fedvision.runs.folder import RunFolder
from fedvision.runs.waiting import note_waiting, read_waiting
from tests.deployment.server.test_declined_tasks import Clock
from tests.experiments import tiny


def line(number: int, what: str = "refused", client: str = "") -> str:
    page = {"time": "t", "what": what, "address": f"10.0.0.{number}", "reason": "r", "client": client}
    return json.dumps({**page, "key": "k"}) + "\n"


def addresses(reader: AccessReader) -> list[str]:
    return [found["address"] for found in reader.added()]


def test_lines_are_read_as_they_come_and_half_of_one_later(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text(line(1))
    reader = AccessReader(file)
    assert addresses(reader) == [], "from before"
    with file.open("a") as end:
        end.write(line(2) + line(3)[:20])
        end.flush()
        assert addresses(reader) == ["10.0.0.2"]
        end.write(line(3)[20:] + "no JSON\n[1]\n" + line(4))
        end.flush()
    assert addresses(reader) == ["10.0.0.3", "10.0.0.4"]
    reader.close()


def test_a_file_that_is_set_aside_is_read_to_its_end_and_the_new_one_from_its_beginning(
    tmp_path: Path,
) -> None:
    file = tmp_path / FILE
    reader = AccessReader(file)
    assert addresses(reader) == []
    file.write_text(line(1))
    assert addresses(reader) == ["10.0.0.1"]
    with file.open("a") as end:
        end.write(line(2))
    file.rename(tmp_path / "old")
    file.write_text(line(3))
    assert addresses(reader) == ["10.0.0.2", "10.0.0.3"]
    reader.close()


def test_only_refusals_and_connections_are_written_once_a_minute(tmp_path: Path) -> None:
    handler, clock = AccessHandler(tmp_path / FILE), Clock()
    handler.addFilter(RepeatFilter(clock))
    log = logging.getLogger("fedvision.deployment")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        log.warning("something else")
        for _ in range(3):
            server_log.refuse("10.0.0.7", "no known key", " [SHA256:a]", key="SHA256:a")
        server_log.connected("10.0.0.8", "north", "SHA256:n")
        clock.seconds += 61
        server_log.refuse("10.0.0.7", "no known key", " [SHA256:b]", key="SHA256:b")
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()
    lines = [json.loads(text) for text in (tmp_path / FILE).read_text().splitlines()]
    assert [(one["what"], one["address"], one["reason"], one["client"], one["key"]) for one in lines] == [
        ("refused", "10.0.0.7", "no known key [SHA256:a]", "", "SHA256:a"),
        ("connected", "10.0.0.8", "", "north", "SHA256:n"),
        ("refused", "10.0.0.7", "no known key [SHA256:b]", "", "SHA256:b"),
    ]


def test_a_run_writes_down_what_it_reads_with_addresses_and_a_limit(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(line(9, "connected", "north"))
    trail = AuditTrail(tmp_path)
    trail.watch(tmp_path)
    trail.run("run began", by="operator")
    trail.round = 2
    with (tmp_path / FILE).open("a") as end:
        end.write(line(5) + line(6, "refused", "south") + "".join(map(line, range(1100))))
    member = {"what": "joined", "round": 2, "by": "north", "name": "north", "key": "SHA256:n", "node": 1}
    trail.member({**member, "sharing": "plain", "time": "t", "client": 0})
    trail.stopped(KeyboardInterrupt(), asked=True)
    trail.close()
    found = read_audit(tmp_path / AUDIT)
    assert found.broken == 0
    lines = found.lines
    assert (lines[0]["what"], lines[0]["by"], lines[0]["round"]) == ("run began", "operator", 0)
    assert [(one["what"], one["client"], one["by"], one["address"]) for one in lines[1:3]] == [
        ("call refused", None, "caller", "10.0.0.5"),
        # The key that a refused call bears proves nobody.
        ("call refused", "south", "caller", "10.0.0.6"),
    ]
    assert len(lines) == 1 + 1000 + 1 + 1 + 1
    assert lines[1001]["what"] == "further refused calls are in superlink.log alone"
    joined, stop = lines[-2:]
    assert (joined["what"], joined["client"], joined["address"]) == ("joined", "north", "10.0.0.9")
    assert (stop["what"], stop["by"], stop["reason"]) == ("run stopped", "operator", "fedvision stop")


def test_a_client_that_connects_while_the_superlink_starts_stands_in_the_runs_audit_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that waits for the server calls as soon as the port is open, before the run is under way."""
    place = SuperlinkOptions(clients=tmp_path / "clients", state=tmp_path / "state", insecure=True)
    place.state.mkdir()
    (place.state / FILE).write_text(line(1, "connected", "north"))

    def opens(_: SuperlinkProcess) -> SuperlinkOptions:
        with (place.state / FILE).open("a") as end:
            end.write(line(2, "connected", "south"))
        raise ConfigError("the test ends here")

    monkeypatch.setattr(SuperlinkProcess, "open", opens)
    config = tiny(rounds=1)
    run = Deployment(Experiment.build(config), RunFolder.create(tmp_path / "run", config))
    note_waiting(tmp_path / "run", "waiting: 0 of 1 clients; what a server that was killed left")
    with pytest.raises(ConfigError, match="the test ends here") as caught:
        run.run(place, SuperlinkProcess(place), wait_for=1)
    assert read_waiting(tmp_path / "run") == ""
    run.mark_failed(caught.value)
    lines = read_audit(tmp_path / "run" / AUDIT).lines
    assert [(one["what"], one.get("client"), one.get("address")) for one in lines] == [
        ("connected", "south", "10.0.0.2"),
        ("run failed", None, None),
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), ("run stopped", "operator", "a signal or Ctrl-C")),
        (RunError("all clients failed"), ("run failed", "server", "all clients failed")),
    ],
)
def test_a_run_writes_down_why_it_ended_early(
    error: BaseException, expected: tuple[str, str, str], tmp_path: Path
) -> None:
    trail = AuditTrail(tmp_path)
    trail.stopped(error, asked=False)
    (line,) = read_audit(tmp_path / AUDIT).lines
    assert (line["what"], line["by"], line["reason"]) == expected
