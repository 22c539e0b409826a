"""Runs with several labels an image: engines and resumed runs agree, and what does not fit is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvision import seeding, simulate
from fedvision.cli import main
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.partition.holdout import held_out
from fedvision.data.sources.arrays import digits
from fedvision.data.targets import strata
from fedvision.errors import ConfigError, DataError
from fedvision.experiment import Experiment
from fedvision.formatting import percent
from fedvision.reporting.comparison import write_comparison
from fedvision.reporting.inspect_experiment import inspect_experiment
from fedvision.reporting.render import comparison_table, run_table
from fedvision.reporting.run_data import read_facts
from fedvision.runs.folder import RunFolder
from fedvision.tasks.class_predictions import LabelPredictions
from fedvision.trained_model import load
from fedvision.types import State
from tests.double import doubled
from tests.experiments import digits_of_several_labels, several_labels, tiny


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return digits_of_several_labels(tmp_path)


def several(archive: Path, **tables: Any) -> ExperimentConfig:
    base: dict[str, Any] = several_labels(archive) | {
        "partition": {"use": "dirichlet", "clients": 4, "alpha": 0.5},
        "evaluation": {"holdout": 0.2},
        "rounds": 2,
    }
    return tiny(**base | tables)


def same(one: State, other: State) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
def test_a_run_learns_and_prints_its_scores(archive: Path, tmp_path: Path) -> None:
    result = simulate(
        several(archive, rounds=8, training={"batch_size": 16, "lr": 0.5}), out=tmp_path / "run"
    )
    first, last = (result.rounds[i]["server"] for i in (0, -1))
    assert last["scores"]["mean_ap"] > first["scores"]["mean_ap"] + 0.1
    assert last["loss"] < first["loss"]
    assert last["images"] == 200
    assert sum(last["labels"]["positives"]) > 200
    local = result.rounds[-1]["local"]
    assert local["spread"]["clients"] == len(local["mean_ap"]) == 4
    text = run_table(RunFolder(tmp_path / "run"))
    assert "mean AP" in text
    assert "AP" in next(line for line in text.splitlines() if line.startswith("rarest labels"))
    page = (tmp_path / "run/report.html").read_text()
    assert "AUROC</th>" in page
    assert "the mean average precision over labels is" in page
    assert "Nothing was measured" not in page
    assert "training images of 3" not in page


def test_its_model_gives_the_runs_own_numbers_and_labels(archive: Path, tmp_path: Path) -> None:
    run = simulate(several(archive, evaluation={"batch_size": 64}), out=tmp_path / "run")
    recorded = run.rounds[-1]["server"]
    model, data = load(tmp_path / "run"), Experiment.build(several(archive)).dataset
    found = model.evaluate(data)
    assert (found.scores, found.loss) == (recorded["scores"], recorded["loss"])
    test = data.test
    assert test is not None
    predicted = model.predict(test.images)
    assert isinstance(predicted, LabelPredictions)
    right = (predicted.labels & test.labels).sum(0).tolist()
    assert right == recorded["labels"]["true_positives"]
    assert np.array_equal(predicted.labels, predicted.probabilities >= 0.5)
    # Labels are found by their names, in any order.
    turned = Dataset(
        train=ImageSet(images=test.images, labels=test.labels[:, ::-1].copy()), classes=data.classes[::-1]
    )
    assert model.evaluate(turned).scores == recorded["scores"]
    with pytest.raises(DataError, match=r"needs any number of labels an image .* has one class an image"):
        model.evaluate(digits())


def test_its_model_is_used_by_command(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(several(archive), out=tmp_path / "run")
    main.main(["predict", str(tmp_path / "run"), str(archive), "--csv", str(tmp_path / "found.csv")])
    assert capsys.readouterr().out.split()[:2] == ["file", "labels"]
    head, *rows = csv.reader((tmp_path / "found.csv").read_text().splitlines())
    assert head == ["file", "labels", "p(even)", "p(high)", "p(nine)"]
    for row in rows:
        named = [name for name, share in zip(head[2:], row[2:], strict=True) if float(share) >= 0.5]
        assert row[1] == "|".join(name[2:-1] for name in named)
    table = f"use = 'npz', path = '{archive}', classes = ['even', 'high', 'nine']"
    main.main(["evaluate", str(tmp_path / "run"), "--data", table, "--json", str(tmp_path / "found.json")])
    told = capsys.readouterr().out
    assert "tail labels" in told
    assert "nine" in told
    page = json.loads((tmp_path / "found.json").read_text())
    assert page["scores"] == RunFolder(tmp_path / "run").rounds()[-1]["server"]["scores"]
    assert page["classes"]["nine"].keys() >= {"training_images", "positives", "recall", "precision", "ap"}
    assert "confusion" not in page


@pytest.mark.slow
def test_pages_speak_of_labels(archive: Path, tmp_path: Path) -> None:
    folders = []
    for loss in ("binary-cross-entropy", "asymmetric"):
        simulate(several(archive, loss={"use": loss}), out=tmp_path / loss)
        folders.append(RunFolder(tmp_path / loss))
    report = (tmp_path / "asymmetric/report.html").read_text()
    assert "Label by label" in report
    page = write_comparison(folders, tmp_path / "both.html").read_text()
    assert "The rarest labels" in page
    assert "Mean AP over rounds" in page
    rare = [read_facts(folder).rarest(read_facts(folder).best_view, 5)[-1].ap for folder in folders]
    assert all(percent(ap) in page for ap in rare)
    for told in (report, page, comparison_table(folders)):
        assert "balanced accuracy" not in told.lower()
        assert " classes" not in told.split("<body", 1)[-1]


def test_an_inspection_counts_images_and_labels(archive: Path) -> None:
    experiment = Experiment.build(several(archive))
    text = inspect_experiment(experiment)
    images, labels = sum(map(len, experiment.split.clients)), int(experiment.split.totals.sum())
    assert text.startswith(f"{images} training images of 3 labels on 4 clients, with {labels} labels in all")
    row = next(line for line in text.splitlines() if line.startswith("0 "))
    assert int(row.split()[1]) == len(experiment.split.clients[0])
    even = next(line for line in text.splitlines() if line.startswith("even "))
    assert even.split()[2] == percent(experiment.split.totals[0] / images)


@pytest.mark.parametrize("loss", ["class-balanced", "distribution-balanced"])
@pytest.mark.parametrize("prior", ["local", "global"])
def test_engines_agree(loss: str, prior: str, archive: Path, tmp_path: Path) -> None:
    config = doubled(several(archive, loss={"use": loss, "prior": prior}))
    serial, stacked = (
        simulate(config, engine=engine, out=tmp_path / engine) for engine in ("serial", "vectorized")
    )
    for name, tensor in serial.state.items():
        torch.testing.assert_close(stacked.state[name], tensor, rtol=1e-7, atol=1e-7)
    assert (
        serial.rounds[-1]["local"]["labels"]["positives"]
        == stacked.rounds[-1]["local"]["labels"]["positives"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["class-balanced", "distribution-balanced"])
def test_a_resumed_run_has_the_same_bits(loss: str, archive: Path, tmp_path: Path) -> None:
    table = {"use": loss, "prior": "global"}
    whole = simulate(several(archive, rounds=3, loss=table), out=tmp_path / "whole")
    simulate(several(archive, rounds=1, loss=table), out=tmp_path / "parts")
    parts = simulate(several(archive, rounds=3, loss=table), out=tmp_path / "parts", resume=True)
    assert same(whole.state, parts.state)
    assert whole.rounds == parts.rounds


@pytest.mark.slow
def test_mixup_blends_the_losses_of_two_images(archive: Path, tmp_path: Path) -> None:
    result = simulate(several(archive, transforms={"mixup": 0.4}), out=tmp_path / "run")
    assert np.isfinite(result.rounds[-1]["server"]["loss"])


@pytest.mark.parametrize("prior", ["local", "global"])
def test_it_can_be_inspected(archive: Path, prior: str) -> None:
    text = inspect_experiment(
        Experiment.build(several(archive, loss={"use": "class-balanced", "prior": prior}))
    )
    assert "nine" in text


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"loss": {"use": "focal"}}, r"'focal' is for classification, not for .*asymmetric"),
        ({"task": {"use": "classification"}}, "needs one class an image, and .* has any number of labels"),
        ({"data": {"use": "digits"}}, r"needs any number of labels an image \(npz.* has one class an image"),
        ({"evaluation": {"metrics": ["kappa"]}}, "'kappa' is for classification"),
    ],
)
def test_what_is_for_another_task_is_refused(archive: Path, tables: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Experiment.build(several(archive, **tables))


@pytest.mark.parametrize("tested", [False, True])
def test_label_form_without_training_images(tested: bool, archive: Path) -> None:
    data = {"use": "elsewhere", "classes": ["even", "high", "nine"], "height": 8, "width": 8, "channels": 1}
    data |= {"test": str(archive)} if tested else {}
    built = Experiment.build(several(archive, data=data), split_here=False)
    assert (built.dataset.train.labels.shape, built.dataset.train.labels.dtype) == ((0, 3), np.uint8)
    one_class = {"task": {"use": "classification"}, "loss": {"use": "focal"}}
    if tested:
        with pytest.raises(ConfigError, match="needs one class an image"):
            Experiment.build(several(archive, data=data, **one_class), split_here=False)
        two = data | {"classes": ["even", "high"]}
        with pytest.raises(ConfigError, match=r"there are 3 labels; data\.classes names 2"):
            Experiment.build(several(archive, data=two), split_here=False)
    else:
        built = Experiment.build(several(archive, data=data, **one_class), split_here=False)
        assert built.dataset.train.labels.shape == (0,)


def test_a_clients_holdout_depends_on_its_own_images_alone(archive: Path) -> None:
    """What is rare on a client decides, not what is rare in the federation."""
    config = several(archive, evaluation={"holdout": 0.3})
    made = Experiment.build(config)
    labels = made.dataset.train.labels
    for client in range(4):
        own = np.union1d(made.split.clients[client], made.split.test(client))
        rng = seeding.numpy_stream(config.seed, "holdout", client)
        assert own[held_out(strata(labels[own]), 0.3, rng)].tolist() == made.split.test(client).tolist()
