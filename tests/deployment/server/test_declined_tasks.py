"""Clients whose owners' policies decline: named at both ends, left out, and taken again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Error, Message

from fedvision import simulate
from fedvision.deployment.client.participation_policy import DECLINED_FILE
from fedvision.deployment.declining import Declined
from fedvision.deployment.server import deployed_clients as module
from fedvision.engines.local_grid import LocalGrid
from fedvision.files import read_lines
from fedvision.flower import codec, internals
from fedvision.runs.audit_log import FILE as AUDIT
from fedvision.runs.audit_log import read_audit
from fedvision.runs.folder import RunFolder
from fedvision.runs.member_register import MemberRegister
from tests.deployment.server.machines import WAIT_S, machines
from tests.deployment.server.member_rooms import Room
from tests.deployment.server.test_deployment import EXPERIMENT
from tests.experiments import tiny

HOURS = "its hours are 20:00-06:00 (UTC)"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module.time, "monotonic", made)
    return made


def test_a_member_that_declines_is_left_out_until_it_may_be_asked_again(
    six: Path, tmp_path: Path, clock: Clock
) -> None:
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    assert room.look() == [0, 1]
    room.members.declined(room.grid.node("eve"), Declined(HOURS, 300))
    assert room.look() == [0]
    clock.seconds += 299
    assert room.look() == [0]
    assert room.members.counts == (1, 1, 31), "what it reported stays counted"
    assert "eve declines: its hours are 20:00-06:00 (UTC)" in room.members._waiting(room.grid.names())
    clock.seconds += 2
    assert room.look() == [0, 1]
    assert room.noted == [f"eve (1) declines: {HOURS}", "eve (1) is there again"]
    lines = read_lines(room.file)[-2:]
    assert [(line["name"], line["what"], line.get("reason")) for line in lines] == [
        ("eve", "declined", HOURS),
        ("eve", "joined", None),
    ]
    assert len(room.requested(codec.CLIENT_INFO)) == 2, "it is not queried anew"
    assert MemberRegister(room.file).members[1].images == 3


def test_whatever_it_says_it_is_asked_again_after_a_while(six: Path, tmp_path: Path, clock: Clock) -> None:
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    room.look()
    room.members.declined(room.grid.node("eve"), Declined("no", 1e9))
    clock.seconds += module._LONGEST_S + 1
    assert room.look() == [0, 1]


def test_one_that_comes_back_may_be_asked_at_once(six: Path, tmp_path: Path, clock: Clock) -> None:
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    room.look()
    room.members.declined(room.grid.node("eve"), Declined("no", 1e9))
    everybody, room.grid.online = room.grid.online, {"dan"}
    assert room.look() == [0]
    room.grid.online = everybody
    assert room.look() == [0, 1]


def test_one_that_declines_to_join_is_noted_once_and_asked_each_minute(
    six: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    open_now = False
    send = room.grid.send_and_receive

    def declining(messages: list[Message], *, timeout: float | None = None) -> object:
        for message in messages:
            if message.metadata.dst_node_id == room.grid.node("eve") and not open_now:
                internals.set_message_id(message, f"q{len(room.grid.requested)}")
                room.grid.requested.append(("eve", "declined"))
                room.members.declined(room.grid.node("eve"), Declined(HOURS))
                yield Message(Error(code=internals.DECLINED, reason=HOURS), reply_to=message)
            else:
                yield from send([message], timeout=timeout)

    monkeypatch.setattr(room.grid, "send_and_receive", declining)
    for _ in range(3):
        assert room.look() == [0]
        clock.seconds += module._RETRY_AFTER_S + 1
    assert room.requested("declined") == ["eve"] * 3
    assert room.noted == [f"eve declines: {HOURS}"]
    (line,) = [line for line in read_lines(room.file) if line["name"] == "eve"]
    assert (line["what"], line["reason"], line["by"]) == ("declined", HOURS, "eve")
    open_now = True
    assert room.look() == [0, 1]
    assert room.members.counts == (1, 1, 31)


def test_a_round_in_which_all_decline_is_played_when_somebody_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no failed round: rounds and the model are those of a run in which nobody declined."""
    simulate(tiny(rounds=2), out=tmp_path / "plain", engine="serial")
    carry, left = LocalGrid.send_and_receive, [1, 1, 1, 1]

    def send(self: LocalGrid, messages: list[Message], **options: object) -> object:
        messages = list(messages)
        if messages and messages[0].metadata.message_type == "train" and left:
            left.pop()
            for number, message in enumerate(messages):
                internals.set_message_id(message, f"d{number}")
                yield Message(Error(code=internals.DECLINED, reason=HOURS), reply_to=message)
            return
        yield from carry(self, messages, **options)

    monkeypatch.setattr(LocalGrid, "send_and_receive", send)
    simulate(tiny(rounds=2), out=tmp_path / "declined", engine="serial")
    assert left == []
    plain, declined = (RunFolder.read(tmp_path / name) for name in ("plain", "declined"))
    assert declined.rounds() == plain.rounds()
    assert (declined.path / "model.safetensors").read_bytes() == (
        plain.path / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_client_that_declines_in_mid_run_is_named_at_both_ends_and_the_run_goes_on(
    tmp_path: Path, pki: Path
) -> None:
    """South's owner allows one round: it trains in the first, declines the second, and is then left out."""
    text = EXPERIMENT.format(rounds=3, epochs=1, strategy="fedavg")
    with machines(tmp_path, pki, text) as here:
        server = here.server("--log-format", "json")
        here.client("north", "policy = { min_clients = 2 }")
        here.client("south", "policy = { max_rounds = 1 }")
        assert server.wait(WAIT_S) == 0, here.log("server")
        records = here.rounds()
        assert [record["clients"] for record in records] == [[0, 1], [0], [0]]
        reason = "it has trained in 1 round, all that its policy allows"
        (item,) = records[1]["refused"]
        assert item == {"client": 1, "stage": "training", "kind": "declined", "reason": reason}
        (line,) = [line for line in read_lines(here.out / "members.jsonl") if line["what"] == "declined"]
        assert (line["name"], line["reason"], line["round"]) == ("south", reason, 2)
        assert f"south (1) declines: {reason}" in here.log("server")
        # Standard output, with the result's table, goes to the same file.
        said = [json.loads(line) for line in here.log("server").splitlines() if line.startswith("{")]
        assert [line["round"] for line in said if line["kind"] == "round"] == [1, 2, 3]
        (event,) = [line for line in said if line.get("client")]
        assert (event["round"], event["client"], event["level"]) == (2, "south (1)", "info")
        assert f"train: declined: {reason}" in here.log("south")
        audit = read_audit(here.out / AUDIT)
        assert audit.broken == 0
        about = [
            (one["what"], one["by"], one.get("address")) for one in audit.lines if one["client"] == "south"
        ]
        assert about == [
            ("connected", "south", "127.0.0.1"),
            ("joined", "south", "127.0.0.1"),
            ("reported images", "south", "127.0.0.1"),
            ("declined", "south", "127.0.0.1"),
        ]
        assert [one["what"] for one in audit.lines if one["client"] is None] == ["run began", "run finished"]
        (own,) = read_lines(tmp_path / "state-south" / DECLINED_FILE)
        assert (own["experiment"], own["reason"]) == ("two", reason)
