"""Runs side by side: which repeat each other, how the others differ, and hand-computed deviations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvision.errors import RecordError
from fedvision.reporting.compare import (
    WORST,
    Group,
    best_groups,
    compare,
    differing,
    distinguishing,
    flat,
    notices,
    rarest_scores,
    shown_scores,
)
from fedvision.reporting.comparison import write_comparison
from fedvision.reporting.series import Band
from tests.reporting.sample import MakeRun
from tests.reporting.test_html import Page


def _scored(accuracy: float) -> dict[str, object]:
    return {"server": {"loss": 1.0, "scores": {"accuracy": accuracy, "balanced_accuracy": accuracy}}}


def test_runs_that_differ_in_seed_and_name_are_one_group(make_run: MakeRun) -> None:
    folders = [
        make_run("a1", seed=1, changes=_scored(0.5)),
        make_run("b1", seed=1, loss={"use": "focal"}, changes=_scored(0.8)),
        make_run("a2", seed=2, changes=_scored(0.7)),
        make_run("a3", seed=3, changes=_scored(0.6)),
    ]
    first, second = compare(folders)
    assert [run.config.name for run in first.runs] == ["a1", "a2", "a3"]
    assert (first.label, second.label) == ("loss.use=cross-entropy", "loss.use=focal")
    spread = first.spread("accuracy")
    assert spread is not None
    assert spread.mean == pytest.approx(0.6)
    assert spread.deviation == pytest.approx(np.std([0.5, 0.6, 0.7], ddof=1)) == pytest.approx(0.1)
    assert spread.n == 3
    assert str(spread) == "60.0 ± 10.0%"
    assert str(second.spread("accuracy")) == "80.0%"
    assert second.spread("tail") is None


def test_a_lone_group_has_its_name(make_run: MakeRun) -> None:
    (group,) = compare([make_run("one"), make_run("two", seed=5)])
    assert (group.label, dict(group.settings)) == ("one", {})


def test_runs_of_a_sweep_over_seeds_have_the_sweeps_name(make_run: MakeRun) -> None:
    (group,) = compare([make_run(f"long tail seed{seed}", seed=seed) for seed in range(3)])
    assert group.label == "long tail"


def test_keys_that_differ_are_found_with_what_is_missing() -> None:
    tables = [
        {"loss.use": "focal", "loss.gamma": 2.0, "rounds": 3},
        {"loss.use": "ce", "rounds": 3, "flip": True},
        {"loss.use": "ce", "rounds": 3},
    ]
    assert differing(tables) == [
        {"loss.use": "focal", "loss.gamma": "2.0", "flip": None},
        {"loss.use": "ce", "loss.gamma": None, "flip": "true"},
        {"loss.use": "ce", "loss.gamma": None, "flip": None},
    ]
    assert flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def test_a_group_that_lacks_a_key_is_an_error(make_run: MakeRun) -> None:
    strategy = {"use": "fedavg"}
    groups = compare(
        [make_run("a", strategy=strategy), make_run("b", strategy={**strategy, "fraction": 0.5})]
    )
    assert [group.label for group in groups] == ["without strategy.fraction", "strategy.fraction=0.5"]


def test_scores_end_with_the_worst_client(make_run: MakeRun) -> None:
    groups = compare([make_run("a"), make_run("b", seed=1, changes={"local": None})])
    assert shown_scores(groups) == [
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "head",
        "medium",
        "tail",
        WORST,
    ]
    assert groups[0].values(WORST) == [0.5]


def test_the_best_mean_is_marked_unless_all_look_alike(make_run: MakeRun) -> None:
    folders = [
        make_run("a", changes=_scored(0.80004)),
        make_run("b", changes=_scored(0.8), loss={"use": "focal"}),
        make_run("c", changes=_scored(0.5), loss={"use": "ldam"}),
    ]
    assert best_groups(compare(folders), "accuracy") == {0, 1}
    assert best_groups(compare(folders[:2]), "accuracy") == set()


def test_bands_cover_the_rounds_that_all_runs_have(make_run: MakeRun) -> None:
    folders = [
        make_run("a", rounds=3, changes=_scored(0.4)),
        make_run("b", rounds=2, seed=1, changes=_scored(0.6)),
    ]
    band = compare(folders)[0].band("accuracy")
    deviation = 0.2 / np.sqrt(2)
    assert band.rounds == [1, 2]
    assert band.median == pytest.approx([0.5, 0.5])
    assert band.highest == pytest.approx([0.5 + deviation] * 2)
    assert band.lowest == pytest.approx([0.5 - deviation] * 2)
    assert Group(label="", settings={}, runs=[]).band("accuracy") == Band([], [], [], [])


def test_recalls_of_the_rarest_classes_are_means_over_runs(make_run: MakeRun) -> None:
    groups = compare(
        [make_run("a", rounds=3), make_run("b", rounds=1, seed=1), make_run("c", loss={"use": "focal"})]
    )
    classes, recalls = rarest_scores(groups, 2)
    assert [(c.name, c.train) for c in classes] == [("dog", 8), ("ant", 2)]
    assert recalls == [[pytest.approx(0.6), pytest.approx(0.3)], [pytest.approx(0.6), pytest.approx(0.4)]]


def test_runs_with_other_classes_have_no_rarest_in_common(make_run: MakeRun) -> None:
    same, other = make_run("a"), make_run("b", classes=("cat", "dog", "bee"))
    assert rarest_scores(compare([same, other]), 2) == ([], [])
    unmeasured = make_run("c", rounds=0, loss={"use": "focal"})
    assert rarest_scores(compare([same, unmeasured]), 2) == ([], [])


def test_balanced_data_have_no_rarest_classes(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a", counts=[[4, 4, 4]] * 2), make_run("b", counts=[[4, 4, 4]] * 2, seed=1)]
    assert rarest_scores(compare(runs), 2) == ([], [])
    page = write_comparison(runs, tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "The rarest classes" not in page


def test_the_page_has_table_pictures_and_links(make_run: MakeRun, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    folders = [
        make_run("a1", seed=1),
        make_run("a2", seed=2),
        make_run("b <i>", data={"use": "npz", "path": evil}, rounds=1),
    ]
    (folders[0].path / "report.html").touch()
    path = write_comparison(folders, tmp_path / "out" / "comparison.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for expected in (
        "3 runs, 2 experiments",
        "data.use",
        "60.0 ± 0.0",
        "n runs",
        "cat (10) dog (8) ant (2) data.use=digits 80.0% 60.0% 40.0%",
        "1 of 3",
        evil,
        "b <i>",
    ):
        assert expected in page.text, expected
    assert "<script" not in text
    assert "http" not in text
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a"] == ["../a1/report.html"]
    assert sum(tag == "svg" for tag, _ in page.tags) == 5


def test_runs_without_measurements_are_compared_too(make_run: MakeRun, tmp_path: Path) -> None:
    path = write_comparison([make_run("a", rounds=0), make_run("b", rounds=0)], tmp_path / "comparison.html")
    assert "2 runs, 1 experiment" in Page(path.read_text(encoding="utf-8")).text


def test_measurements_on_different_images_are_called_so(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("a"), make_run("b", changes={"server": None}, rounds=1)]
    text = write_comparison(folders, tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "these figures do not compare" in text


def test_a_page_that_cannot_be_written_is_an_error_of_one_sentence(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="the comparison could not be written"):
        write_comparison([make_run("a")], tmp_path / "file" / "comparison.html")


def test_shortest_distinct_labels() -> None:
    settings = [
        {"model.use": "cnn", "model.depth": None, "model.join": None},
        {"model.use": "vit", "model.depth": "6", "model.join": None},
        {"model.use": "fusion", "model.depth": "2", "model.join": "gated"},
        {"model.use": "fusion", "model.depth": "2", "model.join": "concat"},
    ]
    assert distinguishing(settings) == [
        {"model.use": "cnn"},
        {"model.use": "vit"},
        {"model.use": "fusion", "model.join": "gated"},
        {"model.use": "fusion", "model.join": "concat"},
    ]
    assert distinguishing([]) == []


def test_what_all_scores_are_of_is_said_once(make_run: MakeRun, tmp_path: Path) -> None:
    part = {"local": {"loss": 1.0, "scores": {"accuracy": 0.5}, "measured_by": 1}}
    runs = [make_run(use, loss={"use": use}, changes=part) for use in ("focal", "fedlc")]
    whole = make_run("whole", loss={"use": "fedrs"}, changes={"local": part["local"] | {"measured_by": 2}})
    assert notices(compare(runs)) == ["clients' scores are of 1 of 2 clients"]
    of_some = "loss.use=focal; loss.use=fedlc: clients' scores are of 1 of 2 clients"
    assert notices(compare([*runs, whole])) == [of_some]
    write_comparison([*runs, whole], tmp_path / "page.html")
    assert f"<p>{of_some.replace(chr(39), '&#39;')}.</p>" in (tmp_path / "page.html").read_text()
