"""Who is a member, and what is known of whom, when clients share their class counts in different ways."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedvision.data.image_counts import ImageCounts
from fedvision.deployment.server import deployed_clients as module
from fedvision.files import read_lines
from fedvision.flower import codec, masked_codec
from fedvision.runs.member_register import REPORTED, MemberRegister
from tests.deployment.server.member_rooms import COUNTS, Room
from tests.deployment.server.processes import eventually


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
    assert room.requested(masked_codec.MASKED) == ["ada", "bob", "cyd"] * 2, (
        "whether it agrees, and then its counts"
    )


class LabelledRoom(Room):
    """Images may have several labels."""

    per_image = "one of each"


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


@pytest.mark.parametrize(
    "damage", [{"client": 0}, {"client": float("inf"), "images": 1, "class-counts": [1, 0, 0]}]
)
def test_a_damaged_report_refuses_its_client_alone(
    six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: dict[str, Any]
) -> None:
    room = Room(tmp_path, six, "dan eve", dan="plain", eve="plain")
    answer = room.grid._answer
    damaged = RecordDict({"config": ConfigRecord(damage)})
    monkeypatch.setattr(room.grid, "_answer", lambda *args: damaged if args[0] == "dan" else answer(*args))
    assert room.look() == [1]
    assert room.noted == ["dan cannot take part: its report of its images is damaged"]


@pytest.mark.parametrize("numbers", [["15", "25", "38", "78"], [0.5] * 4, [1]])
def test_damaged_masked_counts_refuse_their_client_alone(
    six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: list[Any]
) -> None:
    room = Room(tmp_path, six, "ada bob cyd dan")
    answer = room.grid._answer

    def damaging(name: str, kind: str, content: RecordDict) -> RecordDict:
        found = answer(name, kind, content)
        if name == "bob" and kind == masked_codec.MASKED and not masked_codec.agreement_only(content):
            found["config"]["masked-counts"] = numbers
        return found

    monkeypatch.setattr(room.grid, "_answer", damaging)
    room.look()
    reason = "its masked numbers are not one for each class and one for its images"
    assert f"bob cannot take part: {reason}" in room.noted


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
    assert room.requested(masked_codec.MASKED) == []
    room.members.least = 3
    watcher = threading.Thread(target=room.members.present, args=(room.grid,), daemon=True)
    watcher.start()
    assert eventually(lambda: len(room.notices) > 0)
    watcher.join(0.5)  # It is told once.
    waiting = "ada and bob mask class counts, and a sum that hides them needs 3 such clients"
    assert room.notices == [f"waiting: 1 of 3 clients; {waiting}"]
    # The third one ends it.
    room.grid.counts["cyd"] = COUNTS["cyd"]
    room.grid.online = {*room.grid.online, "cyd"}
    watcher.join(60)
    assert not watcher.is_alive()
    assert room.members.counts == (15, 25, 38)
    assert room.notices[1:] == [""], "it waits no more"


def test_two_masked_clients_without_counts(six: Path, tmp_path: Path) -> None:
    """Two masked clients take part uncounted where counts are not needed."""
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
    assert room.requested(masked_codec.MASKED) == [
        "ada",
        "bob",
        "cyd",
        "dan",
        *["ada", "cyd", "dan"] * 2,
    ]


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
    assert len(room.requested(masked_codec.MASKED)) == 3


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
    assert room.requested(masked_codec.MASKED) == []


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
    assert eventually(lambda: len(room.notices) > 0)
    watcher.join(0.5)  # It is told once.
    assert room.notices == ["waiting: 0 of 2 clients; dan last seen 100 s ago; eve last seen 100 s ago"]
    room.seconds = 0.0
    watcher.join(60)
    assert not watcher.is_alive()
    assert room.look() == [0, 1]


def test_a_restarted_server_queries_clients_that_waited_for_a_sum(six: Path, tmp_path: Path) -> None:
    room = Room(tmp_path, six, "ada bob dan", dan="plain")
    assert room.look() == [2]
    room.members = room.again()
    room.grid.requested.clear()
    assert room.look() == [2]
    assert sorted(room.requested(codec.CLIENT_INFO)) == ["ada", "bob"]


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"class-counts": ["a", "b", "c"]},
        {"class-counts": [1.5, 0.0, 2.0]},
        {"class-counts": 3},
        {"images": "many"},
        {"sharing": "masked", "card": DEEP},
        {"sharing": "masked", "card": "[1]"},
        {"sharing": "masked", "card": "{}"},
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_a_report_of_no_sense_leaves_its_sender_out_and_nobody_else(
    six: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    room = Room(tmp_path, six, "ada bob", needed=False, ada="plain", bob="noisy")
    good = {"client": 0, "class-counts": [1, 2, 3], "images": 6, "sharing": "noisy"}
    room.grid.forged["bob", codec.CLIENT_INFO] = RecordDict({"config": ConfigRecord(good | wrong)})
    assert room.look() == [0]
    assert room.members.counts == (10, 0, 1)
    assert "bob cannot take part" in room.noted[0]
    assert room.again().counts == (10, 0, 1), "a server that is started again can read the register"


@pytest.mark.parametrize(
    "reply",
    [{"cards": DEEP}, {"cards": "[[1]]"}, {}],
    ids=lambda reply: str(reply)[:20],
)
def test_an_agreement_of_no_sense_leaves_its_sender_out(
    six: Path, tmp_path: Path, reply: dict[str, Any]
) -> None:
    room = Room(tmp_path, six, "ada bob cyd dan")
    room.grid.forged["dan", masked_codec.MASKED] = RecordDict({"config": ConfigRecord(reply)})
    assert room.look() == [0, 1, 2]
    assert room.members.counts == (15, 25, 8)
    assert room.noted == ["dan cannot take part: its agreement to a masked sum is damaged"]


@pytest.mark.parametrize("numbers", [None, ["a", "b", "c", "d"], [0.5, 1.0, 1.0, 1.0], 4], ids=str)
def test_masked_numbers_of_no_sense_leave_their_sender_out(
    six: Path, tmp_path: Path, numbers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(tmp_path, six, "ada bob cyd dan")
    honest = type(room.grid)._answer

    def answer(grid: Any, name: str, kind: str, content: RecordDict) -> RecordDict:
        found = honest(grid, name, kind, content)
        if name == "dan" and kind == masked_codec.MASKED and not masked_codec.agreement_only(content):
            return RecordDict({"config": ConfigRecord({} if numbers is None else {"masked-counts": numbers})})
        return found

    monkeypatch.setattr(type(room.grid), "_answer", answer)
    room.look()
    assert room.noted == [
        "dan cannot take part: its masked numbers are not one for each class and one for its images"
    ]


def test_a_client_cannot_take_part_with_the_card_of_another(six: Path, tmp_path: Path) -> None:
    """All members are sent all cards; with a twin of one of them every client would refuse the sum."""
    room = Room(tmp_path, six, "ada bob cyd dan")
    stolen = codec.ClientInfo(
        client=3,
        image_counts=ImageCounts.none(3),
        sharing="masked",
        card=room.grid.masks("ada").card().to_table(),
    )
    room.grid.forged["dan", codec.CLIENT_INFO] = codec.encode_client_info(stolen)
    assert room.look() == [0, 1, 2]
    assert room.members.counts == (15, 25, 8)
    assert room.noted == ["dan cannot take part: its card for masked counts is of another client's key"]
