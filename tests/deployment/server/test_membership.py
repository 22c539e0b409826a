"""Members of a run across machines: who joins, leaves, comes back or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.deployment.server import deployed_clients as module
from fedvision.files import read_lines
from fedvision.flower import codec
from fedvision.runs.member_register import MemberRegister
from tests.deployment.server.member_rooms import COUNTS, Room


def test_a_machine_that_took_over_a_name_is_queried(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    room.look()
    room.members = room.again()
    room.grid.requested.clear()
    room.grid.counts = {"fay": [0, 0, 0], "eve": COUNTS["eve"], "dan": [1, 1, 30]}  # dan is node 102 now
    assert room.look() == [0, 1]
    assert room.requested(codec.CLIENT_INFO) == ["dan"]
    assert room.members.counts == (2, 2, 31)


def test_a_client_without_a_proof_is_named_and_left_out(six: Path, strangers: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "ada bob cyd dan")
    (tmp_path / "pki/clients").mkdir(parents=True)
    for name in ("ada", "bob", "cyd"):
        (tmp_path / "pki/clients" / name).symlink_to(six / "clients" / name)
    (tmp_path / "pki/clients/dan").symlink_to(strangers / "clients/stranger")
    room.grid.pki = tmp_path / "pki"
    assert room.look() == [0, 1, 2]
    assert room.noted == [
        "dan cannot take part: stranger's certificate for masked counts is not of this federation's authority"
    ]
    assert room.members.counts == (15, 25, 8)


def test_a_client_that_joins_in_mid_run_is_noted_counted_and_registered(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain", cyd="plain")
    room.look()
    assert room.noted == []
    register = MemberRegister(room.file)
    assert [(m.name, m.key, m.images, m.status) for m in register.members.values()] == [
        ("dan", room.key("dan"), 30, "joined"),
        ("eve", room.key("eve"), 3, "joined"),
    ]
    room.register.round = 3
    room.grid.counts["cyd"] = COUNTS["cyd"]
    room.grid.online = {*room.grid.online, "cyd"}
    room.members.settled = True
    assert (room.look(), room.members.counts) == ([0, 1], (1, 1, 31)), "a round is under way"
    room.members.settled = False
    assert (room.look(), room.members.counts) == ([0, 1, 2], (6, 6, 36))
    assert room.noted == ["cyd (2) joined with 15 training images"]
    line = read_lines(room.file)[-2]
    assert (line["round"], line["name"], line["what"], line["by"]) == (3, "cyd", "joined", "cyd")


def test_who_leaves_comes_back_or_is_shut_out_is_registered(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    room.look()
    everybody = room.grid.online
    room.grid.online = {"dan"}
    room.away = {"eve"}
    assert room.look() == [0]
    room.grid.online = everybody
    assert room.look() == [0, 1]
    room.grid.online, room.away, room.revoked = {"eve"}, {"dan"}, {"dan"}
    assert room.look() == [1]
    assert room.noted == [
        "eve (1) is not there any more",
        "eve (1) is there again",
        "dan (0) is shut out: its key was removed",
    ]
    lines = [(line["name"], line["what"], line["by"]) for line in read_lines(room.file)[4:]]
    assert lines == [("eve", "left", "server"), ("eve", "joined", "eve"), ("dan", "revoked", "operator")]
    assert room.members.counts == (1, 1, 31), "what dan gave stays counted"


def test_a_client_shut_out_while_it_is_away_is_found_out(
    six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NOTICE_EVERY_S", 0.0)
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    room.look()
    room.grid.online, room.away = {"dan"}, {"eve"}
    room.look()
    room.revoked = {"eve"}
    room.look()
    room.look()
    assert room.noted == ["eve (1) is not there any more", "eve (1) is shut out: its key was removed"]


def test_registration_of_a_refused_client(six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused client is registered with its reason and keeps its number."""
    monkeypatch.setattr(module, "_RETRY_AFTER_S", 0.0)
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    room.grid.counts["dan"] = [1, 2]
    assert room.look() == [1]
    reason = "it reports counts of 2 classes, and there are 3"
    assert room.noted == [f"dan cannot take part: {reason}"]
    member = MemberRegister(room.file).members[0]
    assert (member.name, member.status, member.reason, member.images) == ("dan", "refused", reason, None)
    room.members = room.again()
    room.grid.counts["dan"] = COUNTS["dan"]
    assert room.look() == [0, 1]
    assert room.members.counts == (1, 1, 31)
