"""The parts of docs/extend.md are files of an experiment that runs."""

from __future__ import annotations

import re
from pathlib import Path

from fedvision.api import simulate
from fedvision.config import ExperimentConfig
from fedvision.registry import allow_folder

PAGE = (Path(__file__).parents[1] / "docs/extend.md").read_text()
PARTS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.S))


def test_parts_are_short() -> None:
    assert set(PARTS) == {
        "my_data",
        "my_partition",
        "my_model",
        "my_loss",
        "my_strategy",
        "my_update",
        "my_metric",
    }
    assert all(text.count("\n") < 30 for text in PARTS.values())


def test_the_experiment_of_own_parts_runs(tmp_path: Path) -> None:
    for name, text in PARTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    allow_folder(tmp_path)
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    (tmp_path / "mine.toml").write_text(toml)
    result = simulate(ExperimentConfig.load(tmp_path / "mine.toml"), out=tmp_path / "run")
    assert result.scores["my_metric:worst_recall"] > 0.9
    assert result.rounds[0]["clients"] == [0, 1, 2]
    assert result.rounds[0]["bytes"]["up_whole"] == 4 * result.rounds[0]["bytes"]["up"]
