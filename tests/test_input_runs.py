"""Runs whose network reads columns beside pixels: engines, resumed runs, later use, and what is refused."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fedvision import simulate
from fedvision.cli.main import main
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, DataError, RunFolderError
from fedvision.experiment import Experiment
from fedvision.reporting.inspect_experiment import inspect_experiment
from fedvision.trained_model import load
from tests.test_simulation import same, stopping_after

INPUTS: dict[str, Any] = {
    "age": {"kind": "number", "mean": 50, "deviation": 10},
    "cell": {"kind": "category"},
    "note": {"kind": "text", "words": 4, "buckets": 200},
}
SMALL = {"use": "fusion", "dim": 16, "depth": 1, "heads": 2}


def write(folder: Path, *, secret: str = "", images: int = 90) -> Path:
    """Write images of noise whose class their columns alone tell: the animal in a note, the cell or the age.

    Args:
        folder: Where table.csv and the images go.
        secret: Words at the end of every note.
        images: How many; two thirds are for training.
    """
    rng = np.random.default_rng(0)
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "split", "age", "cell", "note"])
        for number in range(images):
            label = number % 3
            name = f"{number}.png"
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
            note = ("an old cat", "a small Dog!", "one Mouse")[label] if number % 4 else ""
            age = "" if number % 5 == 0 else f"{30 + 20 * label + rng.random():.3f}"
            cell = ["mono", "poly", "thin"][label] if number % 5 in (1, 2) else "nan"
            split = "train" if number < 2 * images // 3 else "test"
            table.writerow([name, "abc"[label], split, age, cell, f"{note} {secret}".strip()])
    return path


def experiment(path: Path, model: dict[str, Any] = SMALL, **tables: Any) -> ExperimentConfig:
    extractor = {} if model.get("extractor") == "none" or model["use"] != "fusion" else {"width": 4}
    table: dict[str, Any] = {
        "name": "columns",
        "seed": 1,
        "rounds": 2,
        "data": {"use": "manifest", "path": str(path), "size": 8, "channels": 1, "classes": ["a", "b", "c"]},
        "partition": {"use": "iid", "clients": 3},
        "model": {"inputs": INPUTS, **extractor, **model},
        "training": {"lr": 0.1, "batch_size": 8},
        "evaluation": {"holdout": 0.2},
    }
    return ExperimentConfig.from_dict(table | tables)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path)


@pytest.mark.slow
def test_a_network_learns_from_columns_what_no_pixel_tells(table: Path, tmp_path: Path) -> None:
    training = {"lr": 0.1, "momentum": 0.9, "batch_size": 8, "epochs": 4}
    none = experiment(table, {**SMALL, "extractor": "none"}, rounds=8, training=training)
    result = simulate(none, out=tmp_path / "run")
    assert result.scores["accuracy"] > 0.85
    without = simulate(
        experiment(table, {**SMALL, "inputs": {}}, rounds=8, training=training), out=tmp_path / "pixels"
    )
    assert without.scores["accuracy"] < 0.6


@pytest.mark.slow
def test_engines_and_a_resumed_run_have_the_same_bits(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment(table, transforms={"flip": True, "crop": 1}, strategy={"use": "fedprox", "mu": 0.1})
    serial = simulate(config, engine="serial", out=tmp_path / "serial").state
    vectorized = simulate(config, engine="vectorized", out=tmp_path / "vectorized").state
    assert same(serial, vectorized)
    told = (tmp_path / "vectorized/summary.json").read_text()
    assert "clients are trained one by one: [model.inputs] have no form" in told
    with monkeypatch.context() as patched:
        stopping_after(1, patched)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, out=tmp_path / "resumed")
    assert same(serial, simulate(config, out=tmp_path / "resumed", resume=True).state)
    assert any(name.startswith("backbone.further.encoders.of_note.vectors") for name in serial)


@pytest.mark.long
def test_ray_has_the_same_bits(table: Path, tmp_path: Path) -> None:
    config = experiment(table)
    serial = simulate(config, engine="serial", out=tmp_path / "serial").state
    assert same(serial, simulate(config, engine="ray", out=tmp_path / "ray").state)


@pytest.mark.parametrize(
    "keys",
    [
        {"model": {**SMALL, "mirrored": True}},
        {"model": {**SMALL, "train": "last:1"}},
        {"model": {**SMALL, "train": "lora"}},
        {"training": {"lr": 0.1, "batch_size": 8, "accumulate": 2, "checkpoint_activations": True}},
        {"training": {"lr": 0.1, "batch_size": 8, "precision": "bfloat16"}},
        {"strategy": {"use": "fedntd"}},
        {"strategy": {"use": "scaffold"}},
    ],
)
def test_what_else_an_experiment_may_say_works_with_inputs(
    keys: dict[str, Any], table: Path, tmp_path: Path
) -> None:
    result = simulate(experiment(table, **{"rounds": 1, **keys}), out=tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in result.state.values())


def test_checkpointed_activations_have_the_same_bits(table: Path, tmp_path: Path) -> None:
    keys = {"lr": 0.1, "batch_size": 8}
    whole = simulate(experiment(table, rounds=1, training=keys), out=tmp_path / "a").state
    again = experiment(table, rounds=1, training={**keys, "checkpoint_activations": True})
    assert same(whole, simulate(again, out=tmp_path / "b").state)


def test_a_trained_model_gives_the_runs_own_scores_and_masks_what_is_absent(
    table: Path, tmp_path: Path
) -> None:
    config = experiment(table, rounds=3)
    run = simulate(config, out=tmp_path / "run")
    model, data = load(tmp_path / "run"), Experiment.build(config).dataset
    assert model.description.model.inputs["cell"].categories == ("mono", "poly", "thin")
    found = model.evaluate(data)
    assert (found.scores, found.loss) == (
        run.rounds[-1]["server"]["scores"],
        run.rounds[-1]["server"]["loss"],
    )
    listed = model.predict(str(table))
    files = [str(table.parent / f"{number}.png") for number in range(90)]
    assert listed.names == files
    alone = model.predict(files)
    assert not np.allclose(listed.probabilities, alone.probabilities)
    assert alone.notices == (
        "of some images nothing but the pixels is known; the model's inputs are masked there",
    )
    # Columns beside an array are those of the file.
    assert data.test is not None
    rows = list(csv.DictReader(table.read_text().splitlines()))[60:]
    columns = {name: [row[name] for row in rows] for name in ("age", "cell", "note")}
    order = [int(Path(name).stem) - 60 for name in data.test.names]
    beside = model.predict(
        np.ascontiguousarray(data.test.images),
        columns={name: [values[at] for at in order] for name, values in columns.items()},
    )
    at = [files.index(str(table.parent / name)) for name in data.test.names]
    np.testing.assert_allclose(beside.probabilities, listed.probabilities[at], atol=1e-5)
    nothing = model.predict(np.ascontiguousarray(data.test.images))
    np.testing.assert_allclose(nothing.probabilities, alone.probabilities[at], atol=1e-5)


def test_data_without_the_columns_is_not_measured(table: Path, tmp_path: Path) -> None:
    simulate(experiment(table, rounds=1), out=tmp_path / "run")
    other = table.with_name("other.csv")
    rows = [line.split(",")[:4] for line in table.read_text().splitlines()]
    other.write_text("\n".join(",".join(row) for row in rows))
    with pytest.raises(DataError, match=r"model\.inputs\.cell: there is no column 'cell'"):
        load(tmp_path / "run").evaluate(
            Experiment.build(experiment(other, {"use": "cnn", "inputs": {}})).dataset
        )


def test_predict_takes_a_table_on_the_command_line(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(experiment(table, rounds=1), out=tmp_path / "run")
    bad = table.with_name("bad.csv")
    bad.write_text("file,cell\n0.png,wood\n")
    assert main(["predict", str(tmp_path / "run"), str(bad)]) == 2
    assert "model.inputs.cell" in (text := capsys.readouterr().err)
    assert re.search(
        r"0\.png has 'wood' in column 'cell', which is not in categories", " ".join(text.split())
    )
    bad.write_text("name,cell\n0.png,mono\n")
    assert main(["predict", str(tmp_path / "run"), str(bad)]) == 2
    assert "must name an image of its own in the column 'file'" in " ".join(capsys.readouterr().err.split())
    good = table.with_name("good.csv")
    good.write_text("file,cell\n0.png,mono\n1.png,\n")
    assert main(["predict", str(tmp_path / "run"), str(good), "--workers", "1"]) == 0
    assert "1.png" in capsys.readouterr().out


def test_a_run_goes_on_with_the_cells_it_began_with(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stopping_after(1, patched)
        with pytest.raises(KeyboardInterrupt):
            simulate(experiment(table), out=tmp_path / "run")
    table.write_text(table.read_text().replace("old cat", "young cat"))
    with pytest.raises(RunFolderError, match="training columns"):
        simulate(experiment(table), out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"model": {"use": "cnn"}}, r"'cnn': it reads pixels alone and not \[model\.inputs\]"),
        ({"model": {**SMALL, "extractor": "none", "inputs": {}}}, "there are none; name one"),
        (
            {"model": {**SMALL, "extractor": "none", "join": "gated"}},
            "join needs pixels, and extractor = 'none'",
        ),
        ({"model": {**SMALL, "extractor": "none", "patch": 4}}, "patch needs pixels"),
        ({"transforms": {"mixup": 0.2}}, "model.inputs cannot be blended"),
        (
            {"model": {**SMALL, "inputs": {"sex": {"kind": "category"}}}},
            r"model\.inputs\.sex: .*no column 'sex'",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence_before_the_run(
    keys: dict[str, Any], problem: str, table: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        Experiment.build(experiment(table, **keys))


@pytest.mark.slow
@pytest.mark.parametrize("flip", [False, True])
def test_features_that_are_computed_once_are_of_pixels_and_columns(
    flip: bool, table: Path, tmp_path: Path
) -> None:
    model = {**SMALL, "train": "head"}
    transforms = {"flip": True, "views": 2} if flip else {}
    once = experiment(table, model, transforms=transforms)
    found = simulate(once, out=tmp_path / "once").state
    assert "every image passes" not in (tmp_path / "once/summary.json").read_text()
    if not flip:
        training = {"lr": 0.1, "batch_size": 8, "cache_features": False}
        again = simulate(experiment(table, model, training=training), out=tmp_path / "again").state
        assert all(torch.allclose(found[name], again[name], atol=1e-5) for name in found)
    # Other columns of the same pictures are other features.
    table.write_text(table.read_text().replace("old cat", "young cat"))
    other = simulate(once, out=tmp_path / "other").state
    assert not torch.allclose(found["head.weight"], other["head.weight"], atol=1e-5)


@pytest.mark.parametrize("strategy", [{"use": "ccvr", "samples": 10, "steps": 5}, {"use": "closed-form"}])
def test_statistics_of_features_see_columns(strategy: dict[str, Any], table: Path, tmp_path: Path) -> None:
    model = {**SMALL, "extractor": "none", "train": "head" if strategy["use"] == "closed-form" else "all"}
    result = simulate(experiment(table, model, rounds=1, strategy=strategy), out=tmp_path / "run")
    found = simulate(
        experiment(table, {**model, "inputs": {"age": INPUTS["age"]}}, rounds=1, strategy=strategy),
        out=tmp_path / "age",
    )
    assert result.scores["accuracy"] > (0.6 if strategy["use"] == "closed-form" else 0)
    assert result.scores != found.scores


def test_an_inspection_shows_the_loss_of_such_a_network(table: Path) -> None:
    assert "loss" in inspect_experiment(Experiment.build(experiment(table)))


def test_a_network_without_inputs_gets_the_tensor_it_always_got(table: Path) -> None:
    """No wrapper, no row: what a network that reads pixels alone is called with is a tensor."""
    from fedvision.data.shards import Shard
    from fedvision.training.client_trainer import loop_settings

    config = experiment(table, {"use": "cnn", "inputs": {}})
    shard = Shard.whole(Experiment.build(config).dataset.train)
    x, _ = loop_settings(config, 1).forward.batch(shard, np.arange(3))
    assert type(x) is torch.Tensor
    assert shard.further is None


def test_a_model_file_names_its_tensors_by_their_inputs(table: Path, tmp_path: Path) -> None:
    simulate(experiment(table, rounds=1), out=tmp_path / "run")
    names = {name for name in load_file(tmp_path / "run/model.safetensors") if ".further." in name}
    of = {re.sub(r".*\.of_(\w+)\..*", r"\1", name) for name in names}
    assert of == set(INPUTS)
