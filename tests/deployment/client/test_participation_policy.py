"""What an owner's policy allows, declines, and writes down."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedvision.config import ExperimentConfig
from fedvision.deployment.client.approvals import Approvals
from fedvision.deployment.client.participation_config import PolicyConfig
from fedvision.deployment.client.participation_policy import DECLINED_FILE, Policy
from fedvision.deployment.declining import Declined
from fedvision.deployment.run_manifest import RunManifest, digest
from fedvision.errors import ConfigError
from fedvision.files import read_lines

TEXT = ExperimentConfig.from_dict({"name": "long-tail-3", "data": {"use": "digits"}}).to_toml()
MANIFEST = RunManifest(run="ab12", experiment=TEXT, classes=("a",), image=(8, 8, 1))
NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


def policy(folder: Path, now: datetime = NOON, **config: object) -> Policy:
    return Policy(PolicyConfig(**config), folder, now=lambda: now)  # type: ignore[arg-type]


def declined(held: Policy, kind: str = "train", members: int = 9) -> Declined:
    with pytest.raises(Declined) as found:
        held.check(MANIFEST, kind, members)
    return found.value


def test_without_a_policy_everything_is_allowed(tmp_path: Path) -> None:
    held = policy(tmp_path)
    held.check(MANIFEST, "train", 0)
    held.trained("ab12")
    assert list(tmp_path.iterdir()) == []
    assert held.summary() == ["always, in every experiment: the file has no [policy]"]


@pytest.mark.parametrize(
    "allowed", ["long-tail-3", "long-tail*", "*-?", f"sha256:{digest(TEXT)}", f"sha256:{digest(TEXT)[:12]}"]
)
def test_experiments_are_allowed_by_name_or_digest(allowed: str, tmp_path: Path) -> None:
    policy(tmp_path, experiments=("other", allowed)).check(MANIFEST, "query.roster", 0)


def test_another_experiment_is_declined_by_name_and_digest(tmp_path: Path) -> None:
    error = declined(policy(tmp_path, experiments=("other", "sha256:" + "0" * 12)), "query.roster")
    assert str(error) == (
        "its policy allows the experiments other, sha256:000000000000, and not 'long-tail-3' "
        f"(sha256:{digest(TEXT)[:12]})"
    )


def test_a_name_is_no_digest(tmp_path: Path) -> None:
    """A server cannot call its experiment as a digest that is allowed."""
    sha = "sha256:" + "0" * 64
    with pytest.raises(Declined):
        policy(tmp_path, experiments=(sha,)).check_experiment(sha, TEXT)


def test_outside_the_hours_every_task_is_declined_until_they_begin(tmp_path: Path) -> None:
    held = policy(tmp_path, hours="20:00-06:00", zone="UTC")
    for kind in ("query.roster", "train", "evaluate"):
        error = declined(held, kind)
        assert str(error) == "its hours are 20:00-06:00 (UTC)"
        assert error.again == 8 * 3600
    policy(tmp_path, NOON.replace(hour=22), hours="20:00-06:00", zone="UTC").check(MANIFEST, "train", 0)
    assert "closed now, open in 8 h 0 min" in held.summary()[0]


def test_rounds_are_counted_for_each_run_and_across_starts(tmp_path: Path) -> None:
    held = policy(tmp_path, max_rounds=2)
    for _ in range(2):
        held.check(MANIFEST, "train", 0)
        held.trained("ab12")
    held = policy(tmp_path, max_rounds=2)
    assert str(declined(held)) == "it has trained in 2 rounds, all that its policy allows"
    held.check(MANIFEST, "evaluate", 0)
    other = RunManifest(run="cd34", experiment=TEXT, classes=("a",), image=(8, 8, 1))
    held.check(other, "train", 0)


def test_a_minimum_of_clients_holds_for_training(tmp_path: Path) -> None:
    held = policy(tmp_path, min_clients=3)
    assert str(declined(held, members=2)) == (
        "the server says that 2 clients take part, and its policy asks for 3"
    )
    held.check(MANIFEST, "query.roster", 0)
    held.check(MANIFEST, "train", 3)


def test_an_owner_approves_once(tmp_path: Path) -> None:
    held, approvals = policy(tmp_path, ask=True), Approvals(tmp_path)
    assert str(declined(held, "query.roster")).endswith("yet")
    (request,) = approvals.pending()
    assert approvals.path(request).read_text() == TEXT
    assert "1 request waiting for `fedvision approve`" in held.summary()[0]
    approvals.decide(request, "approved")
    held.check(MANIFEST, "train", 0)
    approvals.decide(approvals.find("long-tail-3"), "refused")
    assert "has refused the experiment 'long-tail-3'" in str(declined(held))


@pytest.mark.parametrize(
    ("answer", "status"), [("y\n", "approved"), ("YES\n", "approved"), ("\n", "refused"), ("", "pending")]
)
def test_at_a_terminal_the_owner_is_asked_once(answer: str, status: str, tmp_path: Path) -> None:
    questions, over = [], threading.Event()

    def ask(text: str) -> str:
        questions.append(text)
        over.set()
        return answer

    held = Policy(PolicyConfig(ask=True), tmp_path, now=lambda: NOON, ask=ask)
    declined(held)
    assert over.wait(60)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon and "_prompt" in thread.name:
            thread.join(60)
    (request,) = Approvals(tmp_path).all()
    assert request.status == status
    if status == "pending":
        declined(held)
    (question,) = questions
    assert question.startswith(f"Take part in the experiment long-tail-3 (sha256:{digest(TEXT)[:12]})? ")


def test_what_is_declined_is_written_down_once_for_each_reason(tmp_path: Path) -> None:
    held = policy(tmp_path, max_rounds=1, min_clients=3)
    other = RunManifest(run="cd34", experiment=TEXT, classes=("a",), image=(8, 8, 1))
    for _ in range(3):
        declined(held, members=2)
        with pytest.raises(Declined):
            held.check(other, "train", 2)
    held.trained("ab12")
    declined(held, members=3)
    lines = read_lines(tmp_path / DECLINED_FILE)
    assert [(line["run"], line["reason"][:14]) for line in lines] == [
        ("ab12", "the server say"),
        ("cd34", "the server say"),
        ("ab12", "it has trained"),
    ]
    assert lines[0] | {"reason": ""} == {
        "time": "2026-07-01T12:00:00+00:00",
        "run": "ab12",
        "experiment": "long-tail-3",
        "task": "train",
        "reason": "",
    }


def test_requests_that_wait_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvision.deployment.client.approvals._MOST", 2)
    approvals = Approvals(tmp_path)
    for number in range(2):
        assert approvals.request("x", f"{TEXT}\n# {number}") == "pending"
    with pytest.raises(ConfigError, match="wait for the owner's approval"):
        approvals.request("x", TEXT)


def test_an_experiment_is_found_by_name_or_digest(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    with pytest.raises(ConfigError, match="asked for: none"):
        approvals.find("long-tail-3")
    approvals.request("long-tail-3", TEXT)
    approvals.request("long-tail-3", TEXT + "\n# another")
    with pytest.raises(ConfigError, match="several experiments are called 'long-tail-3'"):
        approvals.find("long-tail-3")
    assert approvals.find(f"sha256:{digest(TEXT)[:8]}").sha == digest(TEXT)
    approvals.decide(approvals.find(digest(TEXT)), "approved")
    assert approvals.find("long-tail-3").status == "pending", "the one that waits"


def test_the_doctor_says_all_that_holds(tmp_path: Path) -> None:
    held = policy(
        tmp_path,
        experiments=("night-*", "long-tail-3"),
        hours="20:00-06:00",
        zone="UTC",
        max_rounds=1,
        min_clients=3,
        ask=True,
    )
    Approvals(tmp_path).request("long-tail-3", TEXT)
    assert held.summary() == [
        "experiments allowed: night-*, long-tail-3",
        "tasks begin within 20:00-06:00 (UTC): closed now, open in 8 h 0 min",
        "at most 1 round of a run",
        "trains where the server says that 3 or more clients take part",
        "the owner approves each experiment; 1 request waiting for `fedvision approve`",
    ]


def test_a_request_that_cannot_be_written_is_no_approval(tmp_path: Path) -> None:
    (tmp_path / "approvals").write_text("a file in the folder's place")
    with pytest.raises(ConfigError, match="the request for approval could not be written down; make room"):
        policy(tmp_path, ask=True).check(MANIFEST, "train", 9)


def test_a_request_that_is_gone_is_not_decided(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    approvals.request("long-tail-3", TEXT)
    request = approvals.find("long-tail-3")
    approvals.path(request).unlink()
    with pytest.raises(ConfigError, match=r"pending.toml: it cannot be renamed: No such file or directory"):
        approvals.decide(request, "approved")
    assert approvals.request("long-tail-3", TEXT) == "pending", "who removes it is asked again"


def test_a_request_of_another_version_is_known_by_its_digest(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    approvals.request("later", 'name = "later"\nnew_key = 1\n')
    (request,) = approvals.pending()
    assert request.name == "?"
    assert approvals.find(request.sha[:6]) == request
