"""The register of a run across machines: what is written, what is read back, who counts as taking part."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.data.image_counts import ImageCounts
from fedvision.files import read_lines
from fedvision.reporting.html import write_report
from fedvision.reporting.participation import participants
from fedvision.reporting.render import run_table
from fedvision.reporting.run_data import read_facts
from fedvision.reporting.summary_sentences import summary_sentences
from fedvision.runs.member_register import (
    DECLINED,
    FAILED,
    JOINED,
    LEFT,
    REFUSED,
    REPORTED,
    REVOKED,
    MemberRegister,
)
from tests.reporting.sample import COUNTS, MakeRun, record


@pytest.fixture
def register(tmp_path: Path) -> MemberRegister:
    made = MemberRegister(tmp_path / "members.jsonl")
    for client, (name, counts) in enumerate(zip(("north", "south"), COUNTS, strict=True)):
        made.joined(client, name, f"SHA256:{name}", node=100 + client, sharing="plain")
        made.add_counts(client, ImageCounts(images=sum(counts), counts=tuple(counts)))
    return made


def test_lines_have_time_client_event_and_actor(tmp_path: Path, register: MemberRegister) -> None:
    register.round = 4
    register.left(1)
    register.revoked(1)
    register.refused(2, "east", "SHA256:east", "it has other classes", by="east")
    register.failed(0, "training", "the disk is full")
    lines = read_lines(tmp_path / "members.jsonl")
    keys = ("round", "name", "key", "what", "by")
    assert [tuple(line[key] for key in keys) for line in lines] == [
        (0, "north", "SHA256:north", JOINED, "north"),
        (0, "north", "SHA256:north", REPORTED, "north"),
        (0, "south", "SHA256:south", JOINED, "south"),
        (0, "south", "SHA256:south", REPORTED, "south"),
        (4, "south", "SHA256:south", LEFT, "server"),
        (4, "south", "SHA256:south", REVOKED, "operator"),
        (4, "east", "SHA256:east", REFUSED, "east"),
        (4, "north", "SHA256:north", FAILED, "north"),
    ]
    assert [line["images"] for line in lines if line["what"] == REPORTED] == [12, 8]
    assert all(line["time"].endswith("+00:00") for line in lines)
    again = MemberRegister(tmp_path / "members.jsonl")
    assert again.members == register.members
    assert {member.name: member.status for member in again.members.values()} == {
        "north": JOINED,
        "south": REVOKED,
        "east": REFUSED,
    }


def test_a_failure_of_a_round_that_is_played_again_is_written_once(register: MemberRegister) -> None:
    before = len(register.lines)
    for number in (1, 1, 2):
        register.round = number
        register.failed(0, "training", "the disk is full")
    assert len(register.lines) == before + 2


def test_another_machine_under_a_name_reports_its_images_anew(register: MemberRegister) -> None:
    register.left(0)
    register.joined(0, "north", "SHA256:north", node=100, sharing="plain")
    assert register.members[0].images == 12, "the same machine is there again"
    register.joined(0, "north", "SHA256:other", node=777, sharing="plain")
    assert (register.members[0].images, register.members[0].key) == (None, "SHA256:other")


def test_a_line_torn_by_a_kill_is_not_glued_to_the_next(tmp_path: Path, register: MemberRegister) -> None:
    file = tmp_path / "members.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"client":1,"na')
    again = MemberRegister(file)
    again.left(1)
    assert file.read_text().startswith(whole)
    assert [line["what"] for line in read_lines(file)] == [JOINED, REPORTED, JOINED, REPORTED, LEFT]


def test_a_client_that_failed_in_every_round_takes_no_part(make_run: MakeRun) -> None:
    """South is selected twice and fails twice; east could never join: one client of three takes part."""
    failure = {"client": 1, "stage": "training", "reason": "the disk is full"}
    folder = make_run(rounds=2, changes={"clients": [0], "refused": [failure]})
    register = folder.members()
    for client, (name, counts) in enumerate(zip(("north", "south"), COUNTS, strict=True)):
        register.joined(client, name, "", node=100 + client, sharing="plain")
        register.add_counts(client, ImageCounts(images=sum(counts), counts=tuple(counts)))
    register.refused(2, "east", "", "it has other classes", by="east")
    facts = read_facts(folder)
    assert (facts.clients, facts.shown, facts.counts.tolist()) == (1, ["north"], [COUNTS[0]])
    assert facts.totals.tolist() == [10, 8, 2], "by these head and tail were scored"
    failed = "south took no part: it failed in every round that selected it, 2 in all (the disk is full)"
    refused = "east took no part: it could not join (it has other classes)."
    sentences = summary_sentences(facts)
    assert sentences[0].startswith(
        "1 client and 1 more without a part keep 20 training images of 3 classes: "
    )
    assert sentences[1:3] == [f"{failed}; its 8 images are in the class counts.", refused]
    page = run_table(folder)
    assert page.splitlines()[0].endswith(", 1 client")
    lines = " ".join(page.split())  # Long sentences are wrapped.
    assert failed in lines
    assert refused in lines
    html = " ".join(write_report(folder).read_text().split())
    assert "1 client of 3 that came" in html
    # It answers at last: from then on it takes part.
    folder.append_round(record(3), {})
    assert [one.member.name for one in read_facts(folder).idle] == ["east"]
    assert read_facts(folder).clients == 2


def test_clients_are_shown_by_name(make_run: MakeRun) -> None:
    folder = make_run()
    for client, name in enumerate(("north", "south")):
        folder.members().joined(client, name, "", node=client, sharing="plain")
    assert "50.0% (south)" in run_table(folder)
    page = write_report(folder).read_text()
    assert "accuracy on the images of client south" in page
    assert page.count(">north<") >= 2, "in the table of members and at its column"


@pytest.mark.slow
def test_a_simulation_has_numbers_and_no_members(make_run: MakeRun) -> None:
    folder = make_run()
    facts = read_facts(folder)
    assert (facts.participants, facts.shown, facts.clients) == ([], ["0", "1"], 2)
    assert "50.0% (1)" in run_table(folder)
    assert "Who takes part" not in write_report(folder).read_text()


def test_a_member_that_declines_keeps_what_it_reported_and_is_noted_once(
    tmp_path: Path, register: MemberRegister
) -> None:
    for _ in range(2):
        register.declined(1, "south", "SHA256:south", "its hours are 20:00-06:00")
    assert [line["what"] for line in register.lines[4:]] == [DECLINED]
    again = MemberRegister(tmp_path / "members.jsonl").members[1]
    assert (again.status, again.sharing, again.counts) == (DECLINED, "plain", tuple(COUNTS[1]))
    assert not participants(register, [])[1].takes_part, "it never trained"
    assert participants(register, [{"round": 1, "clients": [1]}])[1].takes_part


def test_who_was_refused_and_then_declines_must_report_anew(register: MemberRegister) -> None:
    """Otherwise it would count as a member, with images that the server refused."""
    register.refused(1, "south", "SHA256:south", "its images changed", by="south")
    register.declined(1, "south", "SHA256:south", "its hours are 20:00-06:00")
    assert register.members[1].sharing == ""
