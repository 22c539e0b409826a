"""A run that goes on for more rounds is the longer run to the bit, or refused with the key that differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvision import registry
from fedvision.api import simulate
from fedvision.config import ExperimentConfig
from fedvision.errors import RunFolderError
from fedvision.runs.continuation import difference, refusal
from tests.experiments import tiny


def longer(config: ExperimentConfig, rounds: int) -> ExperimentConfig:
    return dataclasses.replace(config, rounds=rounds)


def test_differences_are_found_in_nested_tables() -> None:
    assert difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) is None
    assert difference({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}) == ("a.c", None, 2)
    assert difference({"a": True}, {"a": 1}) == ("a", True, 1)


LONG: list[dict[str, Any]] = [
    {"strategy": {"use": "fedadam", "fraction": 0.6}, "evaluation": {"holdout": 0.2}},
    {"strategy": {"use": "scaffold", "fraction": 0.6}, "checkpoint_every": 2},
    {
        "round": {"buffer": 2, "concurrency": 3},
        "clock": {"seconds_per_image": 0.01, "spread": 1.0, "jitter": 0.3},
        "training": {"lr": 0.1, "schedule": {"use": "step", "every": 2}},
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("tables", LONG, ids=["server-state", "client-state", "late-answers"])
def test_three_rounds_that_go_on_to_five_are_five_rounds(tables: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(rounds=5, **tables)
    whole = simulate(config, out=tmp_path / "whole")
    simulate(longer(config, 3), out=tmp_path / "part")
    grown = simulate(config, out=tmp_path / "part", resume=True)
    assert all(torch.equal(grown.state[name], tensor) for name, tensor in whole.state.items())
    for file in ("rounds.jsonl", "model.safetensors", "config.toml", "split.json"):
        assert (tmp_path / "part" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert grown.folder.summary()["rounds"] == 5
    assert {"round": 4, "client": None, "what": "the run of 3 rounds went on to 5"} in grown.folder.events()


@pytest.mark.slow
def test_a_run_that_is_not_over_may_grow_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows its last round alone does not matter: it has not come to it."""
    from fedvision.simulation import Simulation

    original = Simulation.round_done

    def stop(self: Simulation, record: Any, *rest: Any) -> None:
        original(self, record, *rest)
        if record["round"] == 2:
            raise KeyboardInterrupt

    config = tiny(rounds=4, evaluation={"holdout": 0.2, "with_training": True})
    whole = simulate(config, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "round_done", stop)
        with pytest.raises(KeyboardInterrupt):
            simulate(longer(config, 3), out=tmp_path / "part")
    grown = simulate(config, out=tmp_path / "part", resume=True)
    assert grown.rounds == whole.rounds


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        (
            {"training": {"schedule": "cosine"}},
            "training.schedule 'cosine' gave round 2 the factor 0.75 on the learning rate, "
            "and of 5 rounds it gives 0.904508",
        ),
        (
            {"training": {"sampler": "progressive"}},
            "the sampler 'progressive' (training.sampler) depends on how many rounds there are",
        ),
        (
            {"strategy": {"use": "ccvr", "steps": 5, "samples": 2}},
            "the strategy 'ccvr' refined the model of round 3 as in a run of 3 rounds",
        ),
        (
            {"evaluation": {"every": 2}},
            "round 3 was measured because it was the last one: evaluation.every = 2 does not come to it",
        ),
        (
            {"evaluation": {"holdout": 0.2, "with_training": True}},
            "with evaluation.with_training clients measured the model of round 3, the last one, after it and "
            "not as they trained in the next",
        ),
    ],
)
def test_what_would_have_been_another_run_is_refused(tables: dict[str, Any], why: str) -> None:
    config = tiny(**tables)
    reason = refusal(config, longer(config, 5), 3)
    assert reason == (
        f"its run of 3 rounds cannot go on to 5 as if they had been planned: {why}; set rounds back"
    )
    assert refusal(config, longer(config, 5), 0) is None


def test_a_loss_that_knows_the_rounds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loss_by_rounds.py").write_text("def deferred(counts, round, rounds):\n    return None\n")
    registry.allow_folder(tmp_path)
    config = tiny(loss={"use": "loss_by_rounds:deferred"})
    assert "(loss.use) depends on how many rounds there are" in (refusal(config, longer(config, 4), 1) or "")


def test_fewer_rounds_and_other_keys_are_another_experiment() -> None:
    config = tiny()
    assert refusal(config, longer(config, 2), 1) == (
        "it holds another experiment: rounds is 3 there and 2 here; set it back"
    )
    assert "seed is 3 there and 4 here" in (
        refusal(config, dataclasses.replace(config, seed=4, rounds=5), 1) or ""
    )


def test_a_refused_folder_is_not_touched(tmp_path: Path) -> None:
    config = tiny(rounds=1, evaluation={"every": 2})
    simulate(config, out=tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(
        RunFolderError, match=r"evaluation.every = 2 .*set rounds back, or name another folder"
    ):
        simulate(longer(config, 2), out=tmp_path / "run", resume=True)
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
