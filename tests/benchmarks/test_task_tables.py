"""Tables of tasks: what a run is made of, how a setting is chosen, and what stands in the table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Store, Turn

from fedvision import ExperimentConfig, registry

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "tasks"))

import detection
import detectors
import multi_label
import real_files
import segmentation
import task_tables
from tables import MEASURED, TUNED, Job, take
from task_tables import Method, TaskTable

from tests.experiments import digits_of_several_labels

RATES = [{"training": {"lr": rate}} for rate in (0.1, 0.2)]
TWO = TaskTable(
    name="two",
    experiment={"name": "x", "data": {"use": "npz"}, "training": {"epochs": 2}},
    methods={
        "a": Method(tables={"loss": {"use": "focal"}}, settings=RATES),
        "b": Method(tables={}, settings=RATES),
    },
    scores={"mean AP": "mean_ap", "rarest": "tail"},
    seeds=(1, 2),
)


def found(federated: float, setting: int = 0, **others: float) -> dict[str, Any]:
    values = {"federated": federated, **others}
    scores = {who: {"mean_ap": value, "tail": value / 2} for who, value in values.items()}
    return {"scores": scores, "setting": setting, "cpu_s": 1.0}


def test_only_tuning_sets_images_aside_and_each_seed_has_its_own_data() -> None:
    tuning, measured = (TWO.tables("a", 1, seed, tuning=seed == 0) for seed in (0, 2))
    assert tuning["data"] == {"use": "npz", "seed": 0, "validation": task_tables.VALIDATION}
    assert measured["data"] == {"use": "npz", "seed": 2}
    assert measured["training"] == {"epochs": 2, "lr": 0.2}
    assert (measured["loss"], measured["seed"]) == ({"use": "focal"}, 2)


def test_seeds_are_run_when_all_settings_are_compared(tmp_path: Path) -> None:
    kept = Store(tmp_path / "two.json", {})
    kept.add(Turn(TUNED, "a", 0), found(0.7, 0))
    assert [job.turn for job in TWO.pending(kept, ["a"])] == [
        Turn(TUNED, "a", 0),
        Turn(TUNED, "a", 1),
    ]
    kept.add(Turn(TUNED, "a", 1), found(0.8, 1))
    longer = list(TWO.pending(kept, ["a", "b"]))
    assert [job.turn for job in longer[-2:]] == [Turn(MEASURED, "a", 1), Turn(MEASURED, "a", 2)]
    assert [(job.setting, job.tables["training"]["lr"]) for job in longer[-2:]] == [(1, 0.2)] * 2


def test_of_equal_settings_the_first_is_chosen(tmp_path: Path) -> None:
    kept = Store(tmp_path / "two.json", {})
    for setting in (1, 0):
        kept.add(Turn(TUNED, "b", setting), found(0.7, setting))
    assert TWO.chosen(kept, "b") == 0


def test_a_table_has_means_over_seeds_by_who_trained(tmp_path: Path) -> None:
    kept = Store(tmp_path / "two.json", {})
    kept.add(Turn(MEASURED, "a", 1), found(0.5, 1, central=0.75, local=0.25))
    kept.add(Turn(MEASURED, "a", 2), found(0.6, 1, central=0.75, local=0.25))
    kept.add(Turn(MEASURED, "b", 1), found(0.9, 0))
    *_, best, worst = TWO.markdown(kept).splitlines()
    assert best == "| b | lr 0.1 | 90.0 | – | – | 45.0 | – | – | 1 | 1 |"
    assert worst.startswith("| a | lr 0.2 | 55.0 ± 7.1 | 75.0 ± 0.0 | 25.0 ± 0.0 | 27.5 ± 3.5 | 37.5")
    assert worst.endswith("| 2 |")


def test_a_run_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    kept = Store(tmp_path / "two.json", {})
    job = next(TWO.pending(kept, ["a"]))
    kept.add(job.turn, {**found(0.7), "tables": {**job.tables, "rounds": 7}})
    with pytest.raises(ValueError, match="other settings"):
        take(kept, TWO, [job], 1)


@pytest.mark.slow
def test_a_run_has_scores_of_the_federation_and_of_both_baselines(tmp_path: Path) -> None:
    data = {
        "use": "npz",
        "path": str(digits_of_several_labels(tmp_path)),
        "classes": ["even", "high", "nine"],
    }
    experiment = {
        "name": "x",
        "rounds": 1,
        "task": "multi-label",
        "data": data,
        "partition": {"clients": 3},
        "model": {"use": "cnn", "width": 4, "dense": 8},
        "loss": "distribution-balanced",
    }
    whole, tuned = (
        TWO.measure(Job(Turn("", "a", 0), 0, experiment, "", tuning=tuning), None) for tuning in (False, True)
    )
    assert whole["scores"].keys() == task_tables.WHO.keys()
    for own in whole["scores"].values():
        assert 0 < own["mean_ap"] <= 1
        assert 0 < own["tail"] <= 1
    assert sum(whole["counts"]) > 0
    assert tuned["scores"].keys() == {"federated"}


TABLES = [
    (detection.TABLE, 2),
    (detectors.TABLE, 1),
    (segmentation.TABLE, 2),
    (multi_label.TABLE, 4),
    (real_files.TREES, 1),
    (real_files.BRAIN, 1),
]


@pytest.mark.parametrize(
    ("table", "settings", "name"),
    [(table, settings, name) for table, settings in TABLES for name in table.methods],
    ids=lambda value: value.name if isinstance(value, TaskTable) else str(value),
)
def test_every_method_has_the_same_budget_and_an_experiment_that_can_be_read(
    table: TaskTable, settings: int, name: str
) -> None:
    assert {len(method.settings) for method in table.methods.values()} == {settings}
    assert not {"data", "partition", "rounds"} & table.methods[name].tables.keys()
    tables = [table.tables(name, setting, 0, tuning=True) for setting in range(settings)]
    assert all(tables.count(one) == 1 for one in tables)
    for one in tables:
        config = ExperimentConfig.from_dict(one)
        others = ("classification",) if config.task.use == "segmentation" else ()
        registry.check_task("loss", config.loss.use, config.task.use, *others)
        assert (config.loss.prior == "global") is (table.name in ("detection", "segmentation", "multi-label"))


def test_data_of_files_take_no_seed() -> None:
    assert "seed" not in real_files.TREES.tables("cross-entropy", 0, 3, tuning=False)["data"]
    assert real_files.TREES.tables("cross-entropy", 0, 3, tuning=False)["seed"] == 3
