"""Runs of detection: it learns, engines and resumed runs agree, each strategy works or is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvision import simulate
from fedvision.baselines.gains import HELD_OUT, TEST, read_baselines
from fedvision.data.boxes import CLASS
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.files import plain
from fedvision.runs.folder import RunFolder
from fedvision.tasks.detection import Detection
from fedvision.trained_model import load
from fedvision.types import PluginSpec, State
from tests.detection_data import SMALL, experiment, squares
from tests.methods import STRATEGIES, tables

WORK = {
    *("apfl", "ditto", "fedadagrad", "fedadam", "fedavg", "fedavgm", "fedbn", "feddyn", "fednova", "fedper"),
    *("fedprox", "fedrep", "fedyogi", "flexlora", "krum", "median", "q-fedavg", "scaffold", "trimmed-mean"),
    "zero-shot",
}
"""Strategies that work on tensors or gradients alone; the others work on logits or features of an image."""


def same(one: State, other: State) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def strategy_tables(use: str) -> dict[str, Any]:
    found = tables(use, SMALL["fcos"])
    if use == "fedbn":
        found["model"] = {**SMALL["fcos"], "backbone": {"use": "resnet8", "width": 8, "norm": "batch"}}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("use", STRATEGIES)
def test_each_strategy_is_tried_before_the_start(use: str, tmp_path: Path) -> None:
    config = experiment(**strategy_tables(use), partition={"use": "iid", "clients": 6})
    if use in WORK:
        Experiment.build(config)
        return
    with pytest.raises(ConfigError) as caught:
        Experiment.build(config)
    assert "\n" not in str(caught.value)
    assert "Error" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("use", sorted(WORK))
def test_each_strategy_that_is_taken_works(use: str, tmp_path: Path) -> None:
    run = simulate(
        experiment(
            **strategy_tables(use),
            partition={"use": "iid", "clients": 6},
            evaluation={"holdout": 0.25},
            data={"use": f"{squares.__module__}:squares", "images": 30, "lacking": True},
        ),
        engine="serial",
        out=tmp_path / "run",
    )
    for record in run.rounds:
        assert not record["refused"]
        assert math.isfinite(record["local"]["loss"])
    assert all(tensor.isfinite().all() for tensor in run.state.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_detector_trains_in_a_federation(name: str, tmp_path: Path) -> None:
    run = simulate(experiment(name, rounds=4), engine="serial", out=tmp_path / "run")
    first, last = (run.rounds[place]["server"] for place in (0, -1))
    assert last["loss"] < first["loss"]
    assert last["images"] == 6


@pytest.mark.slow
def test_a_federation_learns_to_find(tmp_path: Path) -> None:
    run = simulate(
        experiment(
            rounds=6, training={"batch_size": 4, "lr": 0.02, "momentum": 0.9, "epochs": 3, "device": "cpu"}
        ),
        engine="serial",
        out=tmp_path / "run",
    )
    last = run.rounds[-1]["server"]
    assert last["scores"]["ap50"] > 0.3
    # The recorded scores are those of the model on these images.
    data = squares()
    found = load(tmp_path / "run").evaluate(data)
    assert plain(found.scores) == last["scores"]
    assert found.loss == pytest.approx(last["loss"])
    assert data.test is not None
    assert last["boxes"]["boxes"] == Detection().class_counts(data.test.labels, 3).tolist()


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    config = experiment(
        "faster-rcnn", rounds=3, evaluation={"holdout": 0.25}, transforms={"flip": True, "crop": 2}
    )
    whole = simulate(config, engine="serial", out=tmp_path / "whole")
    simulate(replace(config, rounds=2), engine="serial", out=tmp_path / "part")
    resumed = simulate(config, engine="serial", out=tmp_path / "part", resume=True)
    assert same(whole.state, resumed.state)
    assert json.dumps(whole.rounds[-1]["local"]) == json.dumps(resumed.rounds[-1]["local"])


@pytest.mark.slow
def test_the_vectorized_engine_trains_one_by_one_and_says_so(tmp_path: Path) -> None:
    one, other = (simulate(experiment(), engine=use, out=tmp_path / use) for use in ("serial", "vectorized"))
    why = "clients are trained one by one: the task 'detection' has no form for several clients"
    assert why in other.folder.summary()["notices"]
    assert same(one.state, other.state)


@pytest.mark.slow
def test_ray_agrees(tmp_path: Path) -> None:
    config = experiment(evaluation={"holdout": 0.25}, transforms={"flip": True})
    serial, workers = (
        simulate(config, engine=PluginSpec(use=use, args=args), out=tmp_path / use)
        for use, args in (("serial", {}), ("ray", {"workers": 2}))
    )
    assert same(serial.state, workers.state)
    assert json.dumps(serial.rounds[-1]["local"]) == json.dumps(workers.rounds[-1]["local"])
    assert json.dumps(serial.rounds[-1]["server"]) == json.dumps(workers.rounds[-1]["server"])


@pytest.mark.slow
def test_the_head_can_stay_on_the_clients(tmp_path: Path) -> None:
    personal = {**SMALL["fcos"], "personal": ["head.*"]}
    run = simulate(experiment(personal, evaluation={"holdout": 0.25}), engine="serial", out=tmp_path / "run")
    assert all(name.startswith("backbone.") for name in run.state)
    assert math.isfinite(run.rounds[-1]["local"]["loss"])
    alone = {**SMALL["fcos"], "train": "head"}
    run = simulate(experiment(alone), engine="serial", out=tmp_path / "head")
    built = Experiment.build(experiment(alone)).model.state_dict()
    changed = {name for name, tensor in run.state.items() if not torch.equal(tensor, built[name])}
    assert changed
    assert all(name.startswith("head.") for name in changed)


@pytest.mark.slow
def test_baselines_are_compared_by_ap(tmp_path: Path) -> None:
    config = experiment(evaluation={"holdout": 0.3}, partition={"use": "iid", "clients": 2})
    simulate(config, engine="serial", out=tmp_path / "run", baselines=("local", "central"))
    folder = RunFolder.read(tmp_path / "run")
    found = read_baselines(folder)
    assert found is not None
    assert found.central["scores"].keys() == folder.rounds()[-1]["server"]["scores"].keys()
    assert load(tmp_path / "run/baselines/central").evaluate(squares()).scores["ap"] == pytest.approx(
        found.central["scores"]["ap"]
    )
    for on in (TEST, HELD_OUT):
        gains = found.gains(on)
        assert gains is not None
        assert (gains.score, gains.clients) == ("ap", (0, 1))
        own = [line["server" if on == TEST else "local"]["scores"]["ap"] for line in found.local.values()]
        assert gains.alone.tolist() == own
    assert "AP changes by" in (tmp_path / "run/report.html").read_text()


@pytest.mark.slow
def test_late_answers_and_update_transforms_do(tmp_path: Path) -> None:
    run = simulate(
        experiment(
            partition={"use": "iid", "clients": 4},
            update=[{"use": "clip", "max_norm": 5.0}, {"use": "top-k", "fraction": 0.2}],
            round={"buffer": 2, "staleness": 0.5},
            clock={"seconds_per_image": 0.1, "spread": 2.0},
            rounds=4,
        ),
        engine="serial",
        out=tmp_path / "run",
    )
    assert all(tensor.isfinite().all() for tensor in run.state.values())
    assert math.isfinite(run.rounds[-1]["server"]["loss"])


def test_a_pooled_score_is_not_the_mean_of_clients(tmp_path: Path) -> None:
    run = simulate(experiment(evaluation={"holdout": 0.25}), engine="serial", out=tmp_path / "run")
    local = run.rounds[-1]["local"]
    assert set(local["ap"]) == {"0", "1", "2"}
    spread = local["spread"]
    assert spread["clients"] <= 3
    assert local["images"] == 6


@pytest.mark.slow
def test_a_class_that_nobody_trains_on_gives_no_nan(tmp_path: Path) -> None:
    for loss in ("cross-entropy", "class-balanced-sigmoid-focal", "equalization"):
        config = experiment(
            data={"use": f"{squares.__module__}:squares", "lacking": True}, loss={"use": loss}
        )
        run = simulate(config, engine="serial", out=tmp_path / loss)
        assert all(tensor.isfinite().all() for tensor in run.state.values())
    shown = Experiment.build(config).dataset.train.labels[:, 1:, CLASS]
    assert not (shown == 2).any()
