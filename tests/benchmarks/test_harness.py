"""Turns, what is kept, and what is measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import Store, Turn, spread, take, turns

FACTS = {"environment": {"cpus": 2}, "rounds": {"w1": 3}}


def test_rivals_take_turns_and_another_begins_each_time() -> None:
    plan = list(turns(["w1"], ["a", "b", "c"], 3))
    assert [turn.rival for turn in plan] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert [turn.repetition for turn in plan] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def measured(store: Store, plan: list[Turn], fail: str = "") -> list[Turn]:
    """Run a plan with a stand-in and return its turns."""
    seen_turns = []

    def measure(turn: Turn) -> dict[str, Any]:
        seen_turns.append(turn)
        if turn.rival == fail:
            raise RuntimeError("it broke")
        return {"loop_s": 1.0, "others": 0.0}

    take(store, plan, measure, lambda line: None)
    return seen_turns


def test_a_broken_off_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    path, plan = tmp_path / "results/a.json", list(turns(["w1"], ["a", "b"], 2))
    assert measured(Store(path, FACTS), plan, fail="b") == plan
    missing = [turn for turn in plan if turn.rival == "b"]
    assert measured(Store(path, FACTS), plan) == missing
    assert measured(Store(path, FACTS), plan) == []
    assert len(json.loads(path.read_text())["runs"]) == 4


def test_overrides_replace_only_their_keys(tmp_path: Path) -> None:
    path, plan = tmp_path / "a.json", list(turns(["w1"], ["a", "b"], 1))
    measured(Store(path, FACTS), plan)
    store = Store(path, FACTS)
    store.drop(plan[:1])
    assert measured(store, plan) == plan[:1]
    assert len(Store(path, FACTS).runs) == 2


def test_figures_of_another_machine_are_not_mixed(tmp_path: Path) -> None:
    path, plan = tmp_path / "a.json", list(turns(["w1"], ["a"], 1))
    measured(Store(path, FACTS), plan)
    with pytest.raises(ValueError, match="measured with another environment; measure all --again"):
        Store(path, {**FACTS, "environment": {"cpus": 4}})


def test_scores_of_several_machines_say_which(tmp_path: Path) -> None:
    """The file keeps the first machine; a run of another one has its own beside it."""
    path, plan = tmp_path / "a.json", list(turns(["w1"], ["a", "b"], 1))
    measured(Store(path, FACTS, several_machines=True), plan[:1])
    other = {**FACTS, "environment": {"cpus": 4}}
    assert measured(Store(path, other, several_machines=True), plan) == plan[1:]
    assert measured(Store(path, FACTS), plan) == []
    held = json.loads(path.read_text())
    assert held["facts"] == FACTS
    assert [run.get("environment") for run in held["runs"]] == [None, {"cpus": 4}]
    with pytest.raises(ValueError, match="measured with another rounds"):
        Store(path, {**other, "rounds": {"w1": 4}}, several_machines=True)


def test_a_spread_is_the_mean_and_the_sample_deviation_of_several_values() -> None:
    assert spread([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    assert spread([71.25, 71.25], ".1f") == "71.2 ± 0.0"
    assert spread([0.5]) == "0.500"


def test_a_measurement_is_described_as_it_is_asked_for(tmp_path: Path) -> None:
    lines, plan = list[str](), list(turns(["w1"], ["a"], 1))
    take(
        Store(tmp_path / "a.json", FACTS),
        plan,
        lambda turn: {"tail": 0.5},
        lines.append,
        lambda run: str(run["tail"]),
    )
    assert lines == ["1/1 w1 a #1: 0.5"]
