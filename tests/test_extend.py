"""The parts of docs/extend.md are files of an experiment that runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedvision import registry
from fedvision.api import simulate
from fedvision.config import ExperimentConfig
from fedvision.registry import allow_folder
from fedvision.trained_model import load
from fedvision.types import PluginSpec
from tests.data.pictures import save

PAGE = (Path(__file__).parents[1] / "docs/extend.md").read_text()
PARTS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.S))


def test_parts_are_short() -> None:
    assert set(PARTS) == {
        "my_data",
        "my_files",
        "my_partition",
        "my_model",
        "my_loss",
        "my_sampler",
        "my_task",
        "my_strategy",
        "my_algorithm",
        "my_statistic",
        "my_update",
        "my_metric",
    }
    assert all(text.count("\n") < 30 for text in PARTS.values())


def test_the_source_of_files_takes_the_keys_that_all_take(tmp_path: Path) -> None:
    (tmp_path / "my_files.py").write_text(PARTS["my_files"])
    allow_folder(tmp_path)
    for number in range(20):
        kind = ("cat", "dog")[number % 2]
        save(tmp_path / f"photos/{kind}_{number}.png", 10 * number)
    keys = {"path": str(tmp_path / "photos"), "size": 4, "channels": 1, "workers": 1, "validation": 0.2}
    data = registry.build("data", PluginSpec(use="my_files:by_prefix", args=keys))
    assert data.classes == ("cat", "dog")
    assert np.bincount(data.train.labels).tolist() == [8, 8]
    shades = {
        name: int(image[0, 0, 0]) for name, image in zip(data.test.names, data.test.images, strict=True)
    }
    assert len(shades) == 4
    assert all(shade == 10 * int(name.split("_")[1].split(".")[0]) for name, shade in shades.items())


def test_the_experiment_of_own_parts_runs(tmp_path: Path) -> None:
    for name, text in PARTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    allow_folder(tmp_path)
    *_, toml = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    (tmp_path / "mine.toml").write_text(toml)
    result = simulate(ExperimentConfig.load(tmp_path / "mine.toml"), out=tmp_path / "run")
    assert result.scores["my_metric:worst_recall"] > 0.9
    assert result.rounds[0]["clients"] == [0, 1, 2]
    assert result.rounds[0]["bytes"]["up_whole"] == 4 * result.rounds[0]["bytes"]["up"]
    experiment = ExperimentConfig.load(tmp_path / "mine.toml")
    evaluation = replace(experiment.evaluation, statistics=("my_statistic:brightness",))
    other = replace(
        experiment, strategy=PluginSpec(use="my_algorithm:SmallLogits"), evaluation=evaluation, rounds=1
    )
    found = simulate(other, out=tmp_path / "other")
    sums = found.rounds[0]["statistics"]["my_statistic:brightness"]["sums"]
    assert sums["images"] == 240.0
    graded = replace(experiment, task=PluginSpec(use="my_task:Grades"), rounds=3)
    learned = simulate(graded, out=tmp_path / "graded")
    assert learned.state["3.weight"].shape[0] == 1
    assert learned.scores["accuracy"] > 0.9
    model, test = load(tmp_path / "graded"), registry.build("data", experiment.data).test
    assert np.mean(model.predict(test.images).labels == test.labels) == learned.scores["accuracy"]
    # The added mean square of the logits is 0 or more, and the model is no longer the other strategy's.
    assert any(not torch.equal(found.state[name], tensor) for name, tensor in result.state.items())
