"""The best model by clients' held-out images, and runs that end when none is better any more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedvision.api import RunResult, simulate
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.runs.best_model import BestModel
from fedvision.runs.run_recorder import RunRecorder
from fedvision.trained_model import load
from fedvision.training.schedules import Schedule
from tests.experiments import FEDPER, tiny

HELD: dict[str, Any] = {"holdout": 0.3, "keep": "best", "score": "accuracy"}


def ruinous(*, good: int) -> Schedule:
    """Learn for some rounds, then with a rate that destroys: which is best does not rest on a last bit."""
    return lambda round, rounds: 1.0 if round <= good else 8.0


def kept(rounds: int = 8, good: int = 4, lr: float = 0.1, **evaluation: Any) -> ExperimentConfig:
    schedule = {"use": f"{__name__}:ruinous", "good": good}
    training = {"batch_size": 16, "epochs": 4, "lr": lr, "schedule": schedule}
    return tiny(rounds=rounds, training=training, evaluation=HELD | evaluation)


def local(result: RunResult, score: str = "accuracy") -> list[float]:
    return [record["local"]["scores"][score] for record in result.rounds]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("best") / "run"
    return folder, simulate(kept(), out=folder)


def test_the_best_model_is_that_of_its_round(run: tuple[Path, RunResult], tmp_path: Path) -> None:
    folder, result = run
    scores = local(result)
    best = scores.index(max(scores)) + 1
    assert 1 < best < 8  # else nothing would be shown
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"] == {"round": best, "by": "accuracy", "score": max(scores)}
    shorter = simulate(kept(best), out=tmp_path / "shorter")
    tensors = load_file(folder / "best/model.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in shorter.state.items())
    assert load(folder / "best").description.rounds == best
    last = load_file(folder / "model.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in result.state.items())
    assert not all(torch.equal(last[name], tensors[name]) for name in last)
    page = " ".join((folder / "report.html").read_text().split())
    assert f"the model was best after round {best} ({100 * max(scores):.1f}%)" in page


@pytest.mark.slow
def test_a_run_ends_when_its_patience_is_over(tmp_path: Path) -> None:
    """With more rounds than it needs; the same run resumed has nothing left to do."""
    folder = tmp_path / "run"
    whole = local(simulate(kept(), out=tmp_path / "whole"))
    result = simulate(kept(patience=2, calibrate=True), out=folder)
    end = len(result.rounds)
    assert local(result) == whole[:end]
    assert end < 8
    best = whole.index(max(whole[:end])) + 1
    assert end == best + 2
    reason = result.rounds[-1]["stopped_early"]
    assert reason.startswith(
        f"stopped early: accuracy on clients' held-out images was best after round {best} ("
    )
    assert reason.endswith("and 2 measurements since were not better")
    assert "factor" in result.rounds[-1]["calibration"]
    assert all("stopped_early" not in record for record in result.rounds[:-1])
    assert reason in json.loads((folder / "summary.json").read_text())["notices"]
    again = simulate(kept(patience=2, calibrate=True), out=folder, resume=True)
    assert len(again.rounds) == end
    assert all(torch.equal(again.state[name], tensor) for name, tensor in result.state.items())


@pytest.mark.slow
def test_patience_that_ends_with_the_run_ends_nothing_early(tmp_path: Path) -> None:
    """With next to no rate four rounds have the same score, so a patience of 2 is over after the third."""
    ended = [
        simulate(kept(rounds, lr=1e-12, patience=2), out=tmp_path / str(rounds)).rounds for rounds in (3, 4)
    ]
    assert [len(rounds) for rounds in ended] == [3, 3]
    assert ["stopped_early" in rounds[-1] for rounds in ended] == [False, True]


@pytest.mark.slow
def test_a_resumed_run_remembers_the_best_model(run: tuple[Path, RunResult], tmp_path: Path) -> None:
    """Killed right after its best round and some rounds later: as if it had not been."""
    folder, result = run
    scores = local(result)
    best = scores.index(max(scores)) + 1
    for rounds in (best, 7):
        part = tmp_path / f"part-{rounds}"
        simulate(kept(rounds), out=part)
        simulate(kept(), out=part, resume=True)
        files = [load_file(place / "best/model.safetensors") for place in (folder, part)]
        assert all(torch.equal(files[1][name], tensor) for name, tensor in files[0].items())
        summaries = [json.loads((place / "summary.json").read_text())["best"] for place in (folder, part)]
        assert summaries[0] == summaries[1]


def record(round: int, score: float | None) -> Mapping[str, Any]:
    return {"round": round, "local": None if score is None else {"scores": {"balanced_accuracy": score}}}


def test_the_first_of_equal_ones_and_rounds_without_a_score() -> None:
    config = kept(patience=2, score="balanced_accuracy").evaluation
    best = BestModel(config)
    told = [
        best.measured(record(n, s)) for n, s in enumerate((0.5, None, 0.7, float("nan"), 0.7, None, 0.6), 1)
    ]
    assert told == [False] * 6 + [True]
    assert (best.round, best.score, best.since) == (3, 0.7, 2)
    state = {"w": torch.ones(1)}
    best.keep(7, state)
    assert best.state == {}
    best.keep(3, state)
    state["w"] += 1
    assert best.state["w"].item() == 1
    other = BestModel(config)
    other.restore(*best.snapshot())
    assert other.facts() == best.facts() == {"best": {"round": 3, "by": "balanced_accuracy", "score": 0.7}}
    assert BestModel(config).facts() == {}


@pytest.mark.parametrize(
    ("evaluation", "sentence"),
    [
        ({"keep": "best"}, r"evaluation\.keep = 'best' needs evaluation\.holdout > 0"),
        ({"patience": 2}, r"evaluation\.patience needs evaluation\.holdout > 0"),
        ({"patience": -1}, r"evaluation\.patience must be >= 0, not -1"),
        (
            {"patience": 1, "holdout": 0.2, "with_training": True},
            r"evaluation\.patience needs .*with_training = false",
        ),
    ],
)
def test_keys_that_do_not_fit(evaluation: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        tiny(evaluation=evaluation)


def test_a_score_that_there_is_not_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.score = 'acuracy': .*did you mean 'accuracy'"):
        Experiment.build(kept(score="acuracy"))
    with pytest.raises(ConfigError, match=r"evaluation\.keep = 'best' is for one model, and model\.personal"):
        Experiment.build(tiny(evaluation=HELD, **FEDPER))


@pytest.mark.slow
def test_an_early_end_whose_checkpoint_was_not_written_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of round 3 says that the run is over, and the model on disk is that of round 2."""
    write = RunRecorder._checkpoint

    def killed(self: RunRecorder) -> None:
        if self.done == 3:
            raise KeyboardInterrupt
        write(self)

    monkeypatch.setattr(RunRecorder, "_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        simulate(kept(good=1, patience=2), out=tmp_path / "run")
    monkeypatch.undo()
    whole = simulate(kept(good=1, patience=2), out=tmp_path / "whole")
    found = simulate(kept(good=1, patience=2), out=tmp_path / "run", resume=True)
    assert [len(one.rounds) for one in (whole, found)] == [3, 3]
    assert all(torch.equal(found.state[name], tensor) for name, tensor in whole.state.items())
