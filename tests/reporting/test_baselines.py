"""Baselines in the report and in the table: the figures, and a thousand clients that stay readable."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fedvision.baselines.gains import TEST, Gains
from fedvision.reporting import baselines
from fedvision.reporting.comparison import write_comparison
from fedvision.reporting.gain_plot import draw_gains
from fedvision.reporting.html import write_report
from fedvision.reporting.render import comparison_table, run_table
from fedvision.reporting.run_data import read_facts
from fedvision.runs.baseline_folder import BaselineFolder
from fedvision.runs.folder import RunFolder
from tests.reporting.sample import MakeRun, server_confusion

COUNTS = [[8, 4, 0], [2, 4, 2]]


def view(right: list[int]) -> dict[str, object]:
    balanced = sum(right) / 30
    scores = {"accuracy": balanced, "balanced_accuracy": balanced}
    return {"examples": 30, "loss": 1.0, "scores": scores, "right": right, "images": [10, 10, 10]}


def add_local(folder: RunFolder, rights: dict[int, list[int]], *, counted: bool = True) -> None:
    place = BaselineFolder(folder.path, "local")
    place.begin({"rounds": [1, 2, 3], "rounds_done": 3})
    views = {client: view(right) for client, right in rights.items()}
    if not counted:
        views = {client: {key: one[key] for key in one if key != "right"} for client, one in views.items()}
    place.write_clients(
        {"client": client, "images": 12, "loss": 1.0, "server": one, "local": None}
        for client, one in views.items()
    )
    place.finish()


def first_sentence(folder: RunFolder) -> str:
    facts = read_facts(folder)
    assert facts.baselines is not None
    return baselines.gain_sentences(facts, facts.baselines)[0]


@pytest.fixture
def run(make_run: MakeRun) -> RunFolder:
    folder = make_run()
    add_local(folder, {0: [10, 9, 5], 1: [0, 3, 0]})
    return folder


def test_the_federated_model_is_that_of_the_sample(run: RunFolder) -> None:
    confusion = server_confusion(3)
    assert np.diag(confusion).sum() / confusion.sum() == pytest.approx(0.6)


def test_the_table_says_who_gains(run: RunFolder) -> None:
    text = " ".join(run_table(run).split())
    assert "on the test images" in text
    assert "60.0%" in text
    assert "45.0% (10.0 to 80.0)" in text
    assert "On the test images 1 of 2 clients gain by taking part and 1 lose" in text
    assert "changes by +15.0 points in the mean, −20.0 to +50.0" in text
    assert "a client alone trained in 3 of 3 rounds" in text


GAIN = (
    "On the test images 1 of 2 clients gain by taking part and 1 lose: from a client's own model to the "
    "federated one, balanced accuracy changes by +15.0 points in the mean, −20.0 to +50.0"
)


def test_a_gain_is_one_sentence(run: RunFolder) -> None:
    assert first_sentence(run) == f"{GAIN}; beyond the 95 % interval of the difference 1 gain and 0 lose."


def test_without_counts_of_images_no_gain_is_called_sure(make_run: MakeRun) -> None:
    folder = make_run()
    add_local(folder, {0: [10, 9, 5], 1: [0, 3, 0]}, counted=False)
    assert first_sentence(folder) == f"{GAIN}."


def test_clients_whose_training_failed_are_named_with_a_reason(make_run: MakeRun) -> None:
    folder = make_run()
    place = BaselineFolder(folder.path, "local")
    place.begin({"rounds": [1, 2, 3], "rounds_done": 3})
    place.append({"client": 0, "images": 12, "loss": 1.0, "server": view([10, 9, 5]), "local": None})
    place.append({"client": 1, "failed": "its loss is NaN"})
    place.finish()
    text = " ".join(run_table(folder).split())
    assert "1 client could not be trained alone: its loss is NaN." in text
    assert "On the test images 0 of 1 client gain by taking part and 1 lose" in text


def test_what_a_clients_model_was_not_scored_by_has_no_interval_of_another_model(run: RunFolder) -> None:
    facts = read_facts(run)
    assert facts.baselines is not None
    table = baselines.score_tables(facts, facts.baselines)[0]
    assert table.models == ["federated", "each client alone"]
    cells = dict(table.rows)["macro F1"]
    assert cells[0].interval is not None
    assert cells[1] == baselines.Cell(None)
    assert cells[1].text == "–"


@pytest.mark.slow
def test_the_report_has_a_section_and_a_picture(run: RunFolder) -> None:
    page = write_report(run).read_text()
    assert "<h2>Who gains</h2>" in page
    assert "1 gain, 1 lose" in page  # the picture's text
    found = re.findall(r'<tr><th scope="row" class="name">(\d)</th><td class="n">12</td>', page)
    assert found == ["0", "1"]  # who loses most stands first


@pytest.mark.slow
def test_intervals_are_told_where_there_are_some(run: RunFolder, make_run: MakeRun) -> None:
    """Scores of boxes and pixels have none: nothing says how sure they are."""
    scores = {"ap": 0.2, "ap50": 0.4}
    view = {"examples": 30, "loss": 1.0, "scores": scores}
    without = make_run("boxes", changes={"server": view})
    add_local(without, {0: [10, 9, 5]})
    told = [write_report(folder).read_text().count("Behind one model's score") for folder in (run, without)]
    assert told == [1, 0]


@pytest.mark.slow
def test_without_baselines_there_is_no_section(make_run: MakeRun) -> None:
    folder = make_run()
    assert "Who gains" not in write_report(folder).read_text()
    assert "taking part" not in run_table(folder)


def test_of_a_thousand_clients_the_extremes_have_rows(run: RunFolder) -> None:
    rng = np.random.default_rng(0)
    add = {client: [int(n) for n in rng.integers(0, 11, 3)] for client in range(1000)}
    BaselineFolder(run.path, "local").note("begun")
    add_local(run, add)
    facts = read_facts(run)
    assert facts.baselines is not None
    on, rows, left_out = baselines.client_rows(facts, facts.baselines)
    assert (on, len(rows), left_out) == (["the test images"], 60, 940)
    gained = [row.values[0][1] - row.values[0][0] for row in rows]
    assert gained == sorted(gained)
    every = sorted(0.6 - sum(right) / 30 for right in add.values())
    assert gained == pytest.approx(every[:30] + every[-30:])


@pytest.mark.parametrize("clients", [1, 30, 1000])
def test_a_picture_of_many_clients_stays_small(clients: int) -> None:
    rng = np.random.default_rng(1)
    gains = Gains(
        on=TEST,
        score="balanced_accuracy",
        clients=tuple(range(clients)),
        alone=rng.random(clients),
        federated=rng.random(clients),
        sure=None,
    )
    svg = draw_gains(gains, name="g")
    assert svg.count("<use") >= 2 * clients
    assert len(svg) < 1_000_000


def test_a_comparison_has_the_baselines_of_its_runs(run: RunFolder, make_run: MakeRun) -> None:
    add_local(other := make_run("other", seed=8), {0: [10, 9, 8], 1: [3, 3, 0]})
    text = " ".join(comparison_table([run, other]).split())
    assert "run: each client alone 2 50.0 ± 7.1% 50.0 ± 7.1%" in text  # 45 and 55 percent
    page = write_comparison([run, other], run.path / "comparison.html").read_text()
    row = re.search(r"<td>each client alone</td><td class=\"n\">2</td>(.*?)</tr>", page)
    assert row is not None
    assert re.findall(r"[0-9.]+ ± [0-9.]+|–", row[1])[:3] == ["50.0 ± 7.1", "50.0 ± 7.1", "–"]


def test_a_comparison_without_baselines_has_no_table_of_them(make_run: MakeRun) -> None:
    folders = [make_run(), make_run("other", seed=8)]
    assert "each client alone" not in comparison_table(folders)
    page = write_comparison(folders, folders[0].path / "comparison.html").read_text()
    assert "Beside training alone" not in page
