"""Other runs' models beside a run's: the scores that each has alone, and how it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fedvision
from fedvision import pruning, registry, simulate
from fedvision.cli.main import main
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError
from fedvision.export.measurement import Labelled
from fedvision.export.other_runs import compare
from fedvision.runs.model_versions import read_versions
from tests.experiments import tiny

TRAINING = {"batch_size": 16, "lr": 0.05, "epochs": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run, one distilled from it, one pruned and fine-tuned, and one on its own."""
    folder = tmp_path_factory.mktemp("runs")
    simulate(tiny(training=TRAINING, model={"use": "cnn", "width": 8, "dense": 16}), out=folder / "large")
    taught = {"use": "distillation", "teacher": str(folder / "large")}
    simulate(tiny(training=TRAINING, strategy=taught), out=folder / "distilled")
    pruning.prune(folder / "large", 0.5, folder / "start")
    simulate(ExperimentConfig.load(folder / "start" / pruning.EXPERIMENT), out=folder / "pruned")
    simulate(tiny(training=TRAINING), out=folder / "alone")
    return folder


@pytest.fixture
def large(runs: Path, tmp_path: Path) -> Path:
    """Return a copy of the first run, which keeps what is compared with it."""
    return Path(shutil.copytree(runs / "large", tmp_path / "large"))


def test_each_has_the_scores_that_it_has_alone(runs: Path, large: Path) -> None:
    places = [large, *(runs / name for name in ("distilled", "pruned", "alone"))]
    models = [fedvision.load(place, device="cpu") for place in places]
    dataset = registry.build("data", tiny().data)
    shard, _ = models[0].labelled(dataset)
    found = compare(models[0], models[1:], Labelled(shard, "test images of digits"))
    assert [one.kind for one in found] == ["original", "distilled", "pruned", "run"]
    assert [one.name for one in found[1:]] == [
        "cnn, distilled (distilled)",
        "cnn, pruned (pruned)",
        "cnn, trained (alone)",
    ]
    for one, model in zip(found, models, strict=True):
        scores = model.evaluate(dataset)
        worst = float(np.nanmin(scores.by_class["recall"]))
        assert one.accuracy == pytest.approx(scores.scores["accuracy"])
        assert one.balanced_accuracy == pytest.approx(scores.scores["balanced_accuracy"])
        assert one.worst_recall == pytest.approx(worst)
        assert set(one.latency_ms) == {"1", "32"}
        assert one.bytes == (model.path / "model.safetensors").stat().st_size
    assert read_versions(large) == found
    assert found[1].about["numbers"] == sum(p.numel() for p in models[1].network.parameters())


def test_the_command_shows_and_writes_the_table(
    runs: Path, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "versions.json"
    command = [
        "versions",
        str(large),
        str(runs / "distilled"),
        "--data",
        "digits",
        "--json",
        str(page),
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "PyTorch, as trained" in said
    assert "cnn, distilled (distilled)" in said
    kinds = [one["kind"] for one in json.loads(page.read_text())["versions"]]
    assert kinds == ["original", "distilled"]
    assert main(["report", str(large)]) == 0
    assert "cnn, distilled (distilled)" in (large / "report.html").read_text()


def test_classes_in_another_order_are_brought_into_the_runs(large: Path, tmp_path: Path) -> None:
    """The same model, whose description and head have the classes the other way round, scores the same."""
    from tests.test_pruning import rewritten

    own = fedvision.load(large, device="cpu")
    other = tmp_path / "reversed"
    other.mkdir()
    (other / "model.json").write_bytes((large / "model.json").read_bytes())
    state = {name: tensor.clone().contiguous() for name, tensor in own.network.state_dict().items()}
    for name in ("head.weight", "head.bias"):
        state[name] = state[name].flip(0).contiguous()
    rewritten(other, state)
    table = json.loads((other / "model.json").read_text())
    table["classes"] = table["classes"][::-1]
    table["class_counts"] = table["class_counts"][::-1]
    (other / "model.json").write_text(json.dumps(table))
    shard, _ = own.labelled(registry.build("data", tiny().data))
    found = compare(own, [fedvision.load(other, device="cpu")], Labelled(shard, "digits"))
    assert found[0].worst_class == found[1].worst_class
    assert found[0].accuracy == found[1].accuracy
    assert found[1].kind == "run", "a folder with nothing but its model"


def test_what_cannot_be_compared_is_one_sentence(runs: Path, large: Path, tmp_path: Path) -> None:
    own = fedvision.load(large, device="cpu")
    shard, _ = own.labelled(registry.build("data", tiny().data))
    data = Labelled(shard, "digits")
    alone = fedvision.load(runs / "alone", device="cpu")
    with pytest.raises(ConfigError, match=r"cnn, trained \(alone\) is named twice"):
        compare(own, [alone, alone], data)
    rng = np.random.default_rng(0)
    for name, shape, classes in (("other", (8, 8), 3), ("wide", (16, 16), 10)):
        arrays = {
            "train_images": rng.integers(0, 256, (60, *shape), np.uint8),
            "train_labels": np.arange(60) % classes,
        }
        np.savez(tmp_path / f"{name}.npz", **arrays)
        digits = [str(number) for number in range(classes)]
        source = {"use": "npz", "path": str(tmp_path / f"{name}.npz"), "classes": digits}
        partition = {"use": "iid", "clients": 2}
        simulate(tiny(rounds=1, data=source, partition=partition), out=tmp_path / name)
    with pytest.raises(ConfigError, match=r"its classes are not those of .*: 3, 4, 5"):
        compare(own, [fedvision.load(tmp_path / "other", device="cpu")], data)
    with pytest.raises(
        ConfigError, match=r"it takes images of 16 x 16 x 1, and .*large of 8 x 8 x 1; measure it alone"
    ):
        compare(own, [fedvision.load(tmp_path / "wide", device="cpu")], data)
    lines = (large / "exports.jsonl").read_text() if (large / "exports.jsonl").exists() else ""
    assert "wide" not in lines
