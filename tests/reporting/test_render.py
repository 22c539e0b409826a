"""Runs as text, line by line."""

from __future__ import annotations

import pytest

from fedvision.reporting.html import write_report
from fedvision.reporting.render import comparison_table, run_table
from fedvision.reporting.run_data import read_facts
from fedvision.reporting.summary_sentences import headlines, summary_sentences
from tests.reporting.sample import MakeRun, record


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def _squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_run_in_text(make_run: MakeRun) -> None:
    refusal = {"client": 1, "stage": "training", "kind": "refused", "reason": "NaN"}
    summary = {"status": "stopped", "notices": ["2 of 9 files could not be read"]}
    folder = make_run("tail", rounds=2, summary=summary, changes={"refused": [refusal]})
    lines = _squeezed(run_table(folder))
    assert lines[0] == "tail: stopped, 2 of 3 rounds, 2 clients"
    assert "accuracy 53.3% 60.0%" in lines
    assert "tail classes 30.0% 0.0%" in lines
    assert "loss 1.000 0.700" in lines
    assert "worst client 50.0% (1)" in lines
    assert lines[lines.index("ant 2 30.0%") :][:3] == ["ant 2 30.0%", "dog 8 60.0%", "cat 10 70.0%"]
    assert lines[-2:] == [
        "2 kB sent to clients, 1 kB back, 6.00 s; 2 replies not used (2 refused)",
        "note: 2 of 9 files could not be read",
    ]


def test_no_class_is_rare_where_all_counts_are_equal(make_run: MakeRun) -> None:
    text = run_table(make_run("even", counts=[[3, 4, 5], [5, 4, 3]]))
    assert "rarest" not in text
    assert "all 3 classes have equally many training images: none is rare" in text


def test_classes_that_tie_are_listed_together_or_not_at_all(make_run: MakeRun) -> None:
    """Counts 9, 2, 2, 2: the middle of the last three places is the last but one."""
    folder = make_run("ties", rounds=0, classes=("a", "b", "c", "d"), counts=[[9, 2, 2, 2]])
    facts = read_facts(folder)
    assert [c.name for c in facts.rarest(None, 2)] == ["b", "c", "d"]
    assert facts.rarest(None, 1) == []


def test_too_many_ties_for_a_table_are_counted(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvision.reporting.render.RAREST", 0)
    text = run_table(make_run("ties", counts=[[8, 1, 2], [2, 1, 0]]))
    assert "2 of 3 classes are equally rare: too many to list as the rarest" in text


@pytest.mark.slow
def test_local_scores_say_of_how_many_clients_they_are(make_run: MakeRun) -> None:
    """Those of clients that were set aside are not among them; what is left may be easy."""
    local = record(1)["local"]
    part = make_run("part", rounds=2, changes={"local": local | {"measured_by": 1}})
    whole = make_run("whole", rounds=2, changes={"local": local | {"measured_by": 2}})
    assert "measured by 1 of 2 clients" in _squeezed(run_table(part))
    assert "measured by" not in run_table(whole)
    assert "whole: clients' scores are of" not in comparison_table([part, whole])
    clients_alone = make_run("alone", rounds=2, changes={"local": local | {"measured_by": 1}, "server": None})
    (sentence,) = [one for one in summary_sentences(read_facts(clients_alone)) if "measuring" in one]
    assert "images that 1 of 2 clients keep for measuring" in sentence
    assert comparison_table([part]).splitlines()[-1] == "part: clients' scores are of 1 of 2 clients"
    assert headlines(read_facts(part))[-1].meaning.endswith(", the worst of 1 of 2 clients")
    assert not headlines(read_facts(whole))[-1].meaning.endswith("clients")
    assert "keep for it, in the last round by 1 of 2 clients." in write_report(part).read_text()
    assert "keep for it. <b>" in " ".join(write_report(whole).read_text().split())


def test_images_behind_the_worst_client(make_run: MakeRun) -> None:
    facts = record(1)["local"]
    facts["spread"] = {"worst_client": 1, "worst": 0.5, "worst_images": 1}
    lines = _squeezed(run_table(make_run("worst", changes={"local": facts})))
    assert "worst client 50.0% (1, 1 image)" in lines


def test_classes_without_images_are_named_beside_balanced_accuracy(make_run: MakeRun) -> None:
    facts = record(1)["local"]
    facts["confusion"] = [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    text = run_table(make_run("missing", changes={"local": facts}))
    assert "balanced accuracy on clients is without ant: no images to measure" in text
    assert "on the server is without" not in text


def test_a_run_that_has_just_begun_in_text(make_run: MakeRun) -> None:
    assert run_table(make_run("x", rounds=0, split=False)).splitlines() == [
        "x: unfinished, 0 of 3 rounds",
        "",
        "0 B sent to clients, 0 B back, 0.00 s",
    ]


def test_a_comparison_in_text(make_run: MakeRun) -> None:
    folders = [
        make_run("a", seed=1),
        make_run("b", seed=2),
        make_run("c", rounds=1, loss={"use": "focal"}, changes={"local": None}),
    ]
    lines = _squeezed(comparison_table(folders))
    assert any(line.startswith("loss.use=cross-entropy 2 60.0 ± 0.0% 60.0 ± 0.0%") for line in lines)
    assert any(line.startswith("loss.use=focal (1 unfinished) 1 46.7% 46.7%") for line in lines)
    assert "loss.use=focal 60.0% 60.0% 20.0%" in lines
    assert lines[-1] == "mean ± sample standard deviation over n runs that differ in their seed alone"
    assert "mean ±" not in comparison_table(folders[1:])
