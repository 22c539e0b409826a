"""The long-tail tables: what a run is made of, how a setting is chosen, and what its scores are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Store, Turn

from fedvision import ExperimentConfig

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "longtail"))

import cifar
import fashion
import generation
import methods
import personal_models
import photographs
import picture
import protocol
import vacant
import where_the_tail_lives
from protocol import Method, Protocol
from tables import MEASURED, TUNED, take

TWO = Protocol(
    name="two",
    experiment={"name": "x", "training": {"epochs": 2}, "evaluation": {"every": 1}},
    methods={
        "a": Method({"loss": {"use": "focal"}}, [{"training": {"lr": 0.1}}, {"training": {"lr": 0.2}}]),
        "b": Method({}, [{"training": {"lr": 0.1}}, {"training": {"lr": 0.2}}]),
    },
    seeds=(1, 2),
    tuning={"data": {"validation": 0.1}},
)

RECALLS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def found(balanced: float, setting: int = 0) -> dict[str, Any]:
    return {
        "confusion": diagonal([balanced] * 8),
        "counts": list(range(8, 0, -1)),
        "worst_client": 0.5,
        "setting": setting,
    }


def diagonal(recalls: list[float]) -> list[list[int]]:
    """Return a confusion matrix of 10 images a class, the wrong ones taken for the next class."""
    classes = len(recalls)
    rows = [[0] * classes for _ in recalls]
    for label, recall in enumerate(recalls):
        rows[label][label] = round(10 * recall)
        rows[label][(label + 1) % classes] += 10 - round(10 * recall)
    return rows


def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "two.json", {})


def test_later_tables_are_laid_over_earlier_ones() -> None:
    assert protocol.merged({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}}, {"b": {"z": 4}}) == {
        "a": {"x": 1, "y": 3},
        "b": {"z": 4},
    }


def test_only_tuning_sets_images_aside() -> None:
    tuning = TWO.tables("a", 1, 0, tuning=True)
    assert tuning["data"] == {"validation": 0.1}
    assert tuning["training"] == {"epochs": 2, "lr": 0.2}
    assert tuning["loss"] == {"use": "focal"}
    assert "data" not in TWO.tables("a", 1, 2, tuning=False)


def test_seeds_are_run_when_all_settings_are_compared(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add(Turn(TUNED, "a", 0), found(0.7, 0))
    assert [job.turn for job in TWO.pending(kept, ["a"])] == [
        Turn(TUNED, "a", 0),
        Turn(TUNED, "a", 1),
    ]
    kept.add(Turn(TUNED, "a", 1), found(0.8, 1))
    longer = list(TWO.pending(kept, ["a", "b"]))
    assert [job.turn for job in longer[-2:]] == [Turn(MEASURED, "a", 1), Turn(MEASURED, "a", 2)]
    assert longer[-1].tables["training"]["lr"] == 0.2
    assert longer[-1].tables["seed"] == 2


def test_of_equal_settings_the_first_is_chosen(tmp_path: Path) -> None:
    kept = store(tmp_path)
    for setting in (1, 0):
        kept.add(Turn(TUNED, "b", setting), found(0.7, setting))
    assert TWO.chosen(kept, "b") == 0


def test_scores_are_means_of_recalls_by_how_frequent_a_class_is() -> None:
    run = {
        "confusion": diagonal(RECALLS),
        "counts": [1, 9, 2, 8, 3, 7, 5],
        "worst_client": 0.25,
    }
    f1 = [2 * own / (1 + own + 1 - before) for own, before in zip(RECALLS, [0.7, *RECALLS], strict=False)]
    assert protocol.thirds(run) == pytest.approx(
        {
            "macro_f1": 100 * sum(f1) / 7,
            "balanced_accuracy": 40.0,
            "head": 100 * (0.2 + 0.4 + 0.6) / 3,
            "medium": 70.0,
            "tail": 100 * (0.1 + 0.3 + 0.5) / 3,
            "worst_client": 25.0,
        }
    )


def test_of_few_classes_only_the_rarest_stands_alone() -> None:
    run = {"confusion": diagonal([0.5, 0.1, 0.9]), "counts": [5, 9, 1], "worst_client": 0.5}
    assert "head" not in protocol.thirds(run)
    assert protocol.thirds(run)["tail"] == pytest.approx(90.0)


def test_the_picture_of_few_classes_shows_the_rarest_one(tmp_path: Path) -> None:
    few = Protocol(
        name="few",
        experiment={},
        methods={"a": Method({}, [{}])},
        tuning={},
        scores={"macro F1": "macro_f1", "all": "balanced_accuracy", "rarest class": "tail"},
    )
    kept = store(tmp_path)
    for seed in (1, 2):
        run = {"confusion": diagonal([0.5, 0.1, 0.9]), "counts": [5, 9, 1], "worst_client": 0.5}
        kept.add(Turn(MEASURED, "a", seed), {**run, "setting": 0})
    picture.draw(kept, few, tmp_path / "few.svg")
    assert "<svg" in (tmp_path / "few.svg").read_text()


def test_the_worst_client_is_measured_in_its_own_mixture_of_classes() -> None:
    clients = [[30, 10], [10, 30], [0, protocol.FEW - 1]]
    assert protocol.worst_client([1.0, 0.2], clients) == pytest.approx(0.25 + 0.75 * 0.2)


def test_a_run_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    kept = store(tmp_path)
    job = next(TWO.pending(kept, ["a"]))
    kept.add(job.turn, {**found(0.7), "tables": {**job.tables, "rounds": 7}})
    with pytest.raises(ValueError, match="other settings"):
        take(kept, TWO, [job], 1)


PROTOCOLS = [
    fashion.PROTOCOL,
    generation.PROTOCOL,
    personal_models.PROTOCOL,
    *photographs.PROTOCOLS,
    vacant.PROTOCOL,
    where_the_tail_lives.PROTOCOL,
    cifar.protocol(6, 100.0),
]


@pytest.mark.parametrize(
    ("own", "name"),
    [(own, name) for own in PROTOCOLS for name in own.methods],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_method_has_the_same_budget_and_an_experiment_that_can_be_read(
    own: Protocol, name: str
) -> None:
    method = own.methods[name]
    budgets = {len(other.settings) for other in own.methods.values() if other is not methods.LONGTAIL}
    assert budgets in ({4}, {2}, {1})
    assert not {"data", "partition", "rounds"} & method.tables.keys()
    for split in own.splits:
        tables = [own.tables(name, setting, 0, split, tuning=True) for setting in range(len(method.settings))]
        assert all(tables.count(one) == 1 for one in tables)
        for one in tables:
            ExperimentConfig.from_dict(one)
