"""Who is a member, and what is known of whom, when clients share their class counts in different ways."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedvision.aggregation.masking import read_certificates
from fedvision.deployment.certificates import make
from fedvision.deployment.server import deployed_clients as module
from fedvision.deployment.server.deployed_clients import DeployedClientRegistry, Registration
from fedvision.files import read_lines
from fedvision.flower import codec, sharing
from fedvision.runs.member_register import REPORTED, MemberRegister
from tests.deployment.server.grids import Clients

COUNTS = {
    "ada": [10, 0, 1],
    "bob": [0, 20, 2],
    "cyd": [5, 5, 5],
    "dan": [0, 0, 30],
    "eve": [1, 1, 1],
    "fay": [2, 0, 0],
}


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("six")
    make(folder, hosts=["localhost"], clients=sorted(COUNTS))
    return folder


class Room:
    """A server's members over some clients."""

    several_labels = False
    """Whether the clients' images may have several labels."""

    def __init__(self, folder: Path, pki: Path, names: str, needed: bool = True, **how: str) -> None:
        self.file, self.pki, self.needed = folder / "members.jsonl", pki, needed
        self.grid = Clients(folder, pki, {name: COUNTS[name] for name in names.split()}, **how)
        self.seconds = 0.0
        """Since the clients that are online gave a sign of life."""
        self.away: set[str] = set()
        """Who is not online and may join all the same."""
        self.revoked: set[str] = set()
        self.notices: list[str] = []
        self.noted: list[str] = []
        self.members = self.again()

    def again(self) -> DeployedClientRegistry:
        """Return the members as a server that is started again knows them."""
        self.register = MemberRegister(self.file)
        return DeployedClientRegistry(
            self.register,
            "ab12",
            3,
            self.notices.append,
            self.noted.append,
            self.registered,
            needed=self.needed,
            several_labels=self.several_labels,
            authorities=read_certificates(self.pki / "ca.crt"),
        )

    def registered(self) -> dict[str, Registration]:
        return {
            name: Registration(self.grid.node(name), f"SHA256:{name}", self.seconds)
            for name in (self.grid.online | self.away) - self.revoked
        }

    def look(self) -> list[int]:
        self.members.least = 0
        return self.members.present(self.grid)

    def requested(self, kind: str) -> list[str]:
        return [name for name, what in self.grid.requested if what == kind]


def test_three_masked_clients_are_known_as_a_sum_alone(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "ada bob cyd")
    assert room.look() == [0, 1, 2]
    assert room.members.counts == (15, 25, 8)
    assert room.members.table().tolist() == []
    assert (room.members.with_counts, room.members.exact) == ([], True)
    assert list(room.members.groups.values()) == [(0, 1, 2)]
    (line,) = [line for line in read_lines(room.file) if line["what"] == REPORTED]
    assert (line["client"], line["clients"], line["counts"]) == (None, [0, 1, 2], [15, 25, 8])
    assert line["images"] == 48
    room.look()
    assert len(room.requested(codec.CLIENT_INFO)) == 3, "each is queried once"
    assert room.requested(sharing.MASKED) == ["ada", "bob", "cyd"] * 2, (
        "whether it agrees, and then its counts"
    )


class LabelledRoom(Room):
    """Images may have several labels."""

    several_labels = True


def test_images_of_several_labels_are_counted_beside_their_labels(six: Path, tmp_path: Path) -> None:
    """Masked and plain: 12 + 40 + 5 images in a sum, 31 of dan's own, of which one has no label."""
    room = LabelledRoom(tmp_path, six, "ada bob cyd dan", dan="plain")
    room.grid.images = {"ada": 12, "bob": 40, "cyd": 5, "dan": 31}
    assert room.look() == [0, 1, 2, 3]
    assert room.members.counts == (15, 25, 38)
    assert room.members.exact
    own, together = [line for line in read_lines(room.file) if line["what"] == REPORTED]
    assert (own["name"], own["counts"], own["images"]) == ("dan", [0, 0, 30], 31)
    assert (together["clients"], together["counts"], together["images"]) == ([0, 1, 2], [15, 25, 8], 57)
    register = MemberRegister(room.file)
    assert [register.members[client].images for client in range(4)] == [None, None, None, 31]
    again = room.again()
    assert (again.counts, again.groups) == (room.members.counts, room.members.groups)


def test_counts_and_images_that_disagree_are_refused(six: Path, tmp_path: Path) -> None:
    """Of one class an image they add up to the images; of several labels none is above them."""
    for kind, wrong in ((Room, 31), (LabelledRoom, 29)):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        room = kind(folder, six, "dan eve", dan="plain", eve="plain")
        room.grid.images = {"dan": wrong}
        assert room.look() == [1]
        assert room.noted == [
            f"dan cannot take part: it reports counts that {wrong} images cannot have",
        ]


def test_a_damaged_report_refuses_its_client_alone(
    six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    answer = room.grid._answer
    damaged = RecordDict({"config": ConfigRecord({"client": 0})})
    monkeypatch.setattr(room.grid, "_answer", lambda *args: damaged if args[0] == "dan" else answer(*args))
    assert room.look() == [1]
    assert room.noted == ["dan cannot take part: its report of its images is damaged"]


def test_every_way_of_sharing_at_once_gives_the_right_sum(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "ada bob cyd dan eve fay", needed=False, dan="plain", eve="noisy", fay="none")
    assert room.look() == list(range(6))
    assert room.members.counts == (15 + 0 + 1, 25 + 0 + 1, 8 + 30 + 1)
    assert room.members.with_counts == [3, 4]
    assert room.members.table().tolist() == [[0, 0, 30], [1, 1, 1]]
    assert not room.members.exact


def test_two_masked_clients_wait_where_counts_are_needed_and_are_named(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "ada bob dan", dan="plain")
    assert room.look() == [2]
    assert room.requested(sharing.MASKED) == []
    room.members.least = 3
    watcher = threading.Thread(target=room.members.present, args=(room.grid,), daemon=True)
    watcher.start()
    watcher.join(1.5)
    waiting = "ada and bob mask class counts, and a sum that hides them needs 3 such clients"
    assert room.notices == [f"waiting: 1 of 3 clients; {waiting}"]
    # The third one ends it.
    room.grid.counts["cyd"] = COUNTS["cyd"]
    room.grid.online = {*room.grid.online, "cyd"}
    watcher.join(10)
    assert not watcher.is_alive()
    assert room.members.counts == (15, 25, 38)


def test_two_masked_clients_take_part_uncounted_where_counts_are_not_needed(
    six: Path, tmp_path: Path
) -> None:
    room = Room(tmp_path, six, "ada bob", needed=False)
    assert room.look() == [0, 1]
    assert room.members.counts == (0, 0, 0)
    assert not room.members.exact


def test_a_dropout_begins_the_sum_again_with_the_others(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "ada bob cyd dan")
    room.grid.silent = {"bob"}
    assert room.look() == [0, 2, 3]
    assert room.members.counts == (15, 5, 36)
    assert room.noted == ["bob cannot take part: it went offline"]
    assert room.requested(sharing.MASKED) == ["ada", "bob", "cyd", "dan", *["ada", "cyd", "dan"] * 2]


def test_who_drops_out_after_it_agreed_is_waited_for(
    six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others sent counts for this group and send them for no other; a sum without bob would be one."""
    monkeypatch.setattr(module, "_RETRY_AFTER_S", 0.0)
    room = Room(tmp_path, six, "ada bob cyd dan eve")
    room.grid.lost = {"bob"}
    assert room.look() == []
    assert room.noted[0] == "bob cannot take part: it went offline"
    room.grid.online -= {"bob"}
    room.members = room.again()
    requested = len(room.grid.requested)
    for _ in range(3):
        assert room.look() == []
    assert len(room.grid.requested) == requested + 2 * 4, (
        "they are queried once for their information, and once for agreement"
    )
    waiting = room.members._waiting(room.grid.names())
    assert "ada and cyd and dan and eve sent masked class counts for a sum that lacks bob" in waiting
    room.grid.online |= {"bob"}
    room.grid.lost = set()
    assert room.look() == [0, 1, 2, 3, 4]
    assert list(room.members.groups.values()) == [(0, 1, 2, 3, 4)]
    assert room.members.counts == tuple(
        sum(COUNTS[n][c] for n in ("ada", "bob", "cyd", "dan", "eve")) for c in range(3)
    )


def test_too_many_dropouts_leave_nobody_and_no_sum(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "ada bob cyd")
    room.grid.silent = {"bob"}
    assert room.look() == []
    assert room.members.counts == (0, 0, 0)
    assert len(room.requested(sharing.MASKED)) == 3


def test_a_sum_never_grows_by_one_client(six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_AFTER_S", 0.0)
    room = Room(tmp_path, six, "ada bob cyd dan eve fay")
    room.grid.online = {"ada", "bob", "cyd"}
    assert room.look() == [0, 1, 2]
    room.grid.online |= {"dan", "eve"}
    assert room.look() == [0, 1, 2], "two sums that differ by one client would reveal its counts"
    room.grid.online |= {"fay"}
    assert room.look() == list(range(6))
    assert sorted(room.members.groups.values()) == [(0, 1, 2), (3, 4, 5)]
    assert room.members.counts == (18, 26, 39)


def test_a_restarted_server_requests_no_second_sum(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "ada bob cyd")
    room.look()
    before: Any = (room.members.counts, room.members.groups)
    room.members = room.again()
    room.grid.online = {"ada", "cyd"}
    room.grid.requested.clear()
    assert room.look() == [0, 2]
    assert (room.members.counts, room.members.groups) == before
    assert room.requested(sharing.MASKED) == []


def test_a_restarted_server_restores_the_register_without_requests(six: Path, tmp_path: Path) -> None:
    how = {"dan": "plain", "eve": "noisy", "fay": "none"}
    room = Room(tmp_path, six, "ada bob cyd dan eve fay", needed=False, **how)
    room.look()
    members = room.members
    before: Any = (
        members.counts,
        members.with_counts,
        members.table().tolist(),
        members.groups,
        members.exact,
    )
    room.members = members = room.again()
    assert (
        members.counts,
        members.with_counts,
        members.table().tolist(),
        members.groups,
        members.exact,
    ) == before
    room.grid.requested.clear()
    room.grid.online = {"ada", "dan", "fay"}
    assert room.look() == [0, 3, 5], "those that are here; what the others have still counts"
    assert room.grid.requested == []
    assert members.counts == before[0]
    assert [members.client(members.node(client)) for client in range(6)] == list(range(6))


def test_clients_not_yet_back_after_a_server_restart_are_not_selected(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    room.look()
    room.members, room.seconds = room.again(), 100.0
    assert room.look() == [], "what the SuperLink knows is of the time before"
    room.members.least = 2
    watcher = threading.Thread(target=room.members.present, args=(room.grid,), daemon=True)
    watcher.start()
    watcher.join(1.0)
    assert room.notices == ["waiting: 0 of 2 clients; dan last seen 100 s ago; eve last seen 100 s ago"]
    room.seconds = 0.0
    watcher.join(10)
    assert not watcher.is_alive()
    assert room.look() == [0, 1]


def test_a_restarted_server_queries_clients_that_waited_for_a_sum(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "ada bob dan", dan="plain")
    assert room.look() == [2]
    room.members = room.again()
    room.grid.requested.clear()
    assert room.look() == [2]
    assert sorted(room.requested(codec.CLIENT_INFO)) == ["ada", "bob"]


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
        ("dan", "SHA256:dan", 30, "joined"),
        ("eve", "SHA256:eve", 3, "joined"),
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


def test_a_refused_client_is_registered_with_its_reason_and_keeps_its_number(
    six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
