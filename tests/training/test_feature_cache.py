"""Runs on features that are computed once against runs in which images pass the backbone each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedvision import simulate
from fedvision.config import ExperimentConfig, TransformConfig
from fedvision.data.transforms import prepare
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.runs.folder import RunFolder
from fedvision.simulation import Simulation
from fedvision.trained_model import TrainedModel
from fedvision.training import feature_cache
from fedvision.training.features import FeatureExtractor
from fedvision.types import PluginSpec
from tests import detection_data
from tests.experiments import FEDPER, digits_of_several_labels, several_labels, tiny
from tests.segments import segments

LOSSES = {"fcos": "sigmoid-focal", "retinanet": "sigmoid-focal"}
FROZEN: dict[str, Any] = {"use": "cnn", "width": 4, "dense": 8, "dropout": 0.3, "frozen": ["backbone.*"]}
"""A network whose head alone is trained."""


def frozen(**tables: Any) -> ExperimentConfig:
    return tiny(**{"model": FROZEN, "evaluation": {"holdout": 0.2}} | tables)


def anew(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment in which images pass the backbone in every round."""
    table = config.to_dict()
    table["training"]["cache_features"] = False
    return ExperimentConfig.from_dict(table)


def on_features_and_on_images(config: ExperimentConfig, folder: Path, atol: float) -> list[list[Any]]:
    """Return both runs' records round by round; their models are the same but for rounding."""
    runs = simulate(config, out=folder / "on"), simulate(anew(config), out=folder / "off")
    for name, tensor in runs[0].state.items():
        assert torch.allclose(tensor, runs[1].state[name], rtol=0, atol=atol), name
    return [list(pair) for pair in zip(*(run.rounds for run in runs), strict=True)]


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Count the images of which features are computed, in an empty cache."""
    monkeypatch.setenv("FEDVISION_CACHE", str(tmp_path / "cache"))
    found: list[int] = []
    compute = FeatureExtractor._features

    def counted(self: FeatureExtractor, images: Any, *others: Any) -> torch.Tensor:
        found.append(len(images))
        return compute(self, images, *others)

    monkeypatch.setattr(FeatureExtractor, "_features", counted)
    return found


FRONT: dict[str, Any] = {
    "use": "resnet8",
    "width": 4,
    "frozen": ["backbone.features.stem*", "backbone.features.norm*", "backbone.features.stages.0*"],
}
"""A network whose first layers are frozen."""
INSIDE: dict[str, Any] = FRONT | {"frozen": [*FRONT["frozen"], "backbone.features.stages.2*"]}
"""One of which a block behind a trained one is frozen, too."""

CASES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "a frozen front": {"model": FRONT},
    "a frozen front and a frozen block": {"model": INSIDE},
    "a fusion with a frozen extractor": {
        "model": {
            "use": "fusion",
            "extractor": {"use": "resnet8", "width": 4, "train": "none"},
            "dim": 8,
            "depth": 1,
            "heads": 2,
        },
    },
    "a frozen front, scaffold": {"model": FRONT, "strategy": {"use": "scaffold", "fraction": 0.6}},
    "a frozen front, ccvr": {"model": FRONT, "strategy": {"use": "ccvr", "steps": 20}},
    "a frozen front, norms of one's own": {
        "model": FRONT | {"personal": ["backbone.features.stages.1.*norm*"]},
        "strategy": {"use": "fedper"},
    },
    "steps and several labels": {"training": {"steps": 5, "momentum": 0.9}, "task": {"use": "multi-label"}},
    "scaffold": {"strategy": {"use": "scaffold", "fraction": 0.6}},
    "fedntd": {"strategy": {"use": "fedntd"}},
    "ccvr": {"strategy": {"use": "ccvr", "steps": 20}},
    "creff": {"strategy": {"use": "creff", "samples": 5, "match_steps": 5, "steps": 20}},
    "a bias of one's own": {"model": FROZEN | {"personal": ["head.bias"]}, "strategy": {"use": "fedper"}},
    "top-k": {"update": [{"use": "top-k", "fraction": 0.2}]},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_on_features_is_the_run_on_images(case: str, tmp_path: Path, extracted: list[int]) -> None:
    tables = CASES[case]
    if "task" in tables:
        tables = several_labels(digits_of_several_labels(tmp_path)) | tables
    config = frozen(**tables)
    there, here = simulate(config, out=tmp_path / "on"), simulate(anew(config), out=tmp_path / "off")
    assert extracted
    assert there.state.keys() == here.state.keys()
    for name, tensor in there.state.items():
        assert torch.allclose(tensor, here.state[name], rtol=0, atol=2e-5)
    for one, other in zip(there.rounds, here.rounds, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert one["bytes"] == other["bytes"]
        assert one["clients"] == other["clients"]
    one, other = (RunFolder.read(tmp_path / name) for name in ("on", "off"))
    assert one.summary()["parameters"] == other.summary()["parameters"]
    files = [folder.path / "model.safetensors" for folder in (one, other)]
    models = [load_file(file) for file in files]
    assert models[0].keys() == models[1].keys()
    assert all(torch.allclose(tensor, models[1][name], atol=2e-5) for name, tensor in models[0].items())
    if "personal" in tables.get("model", {}):
        return
    images = tiny_images()
    found = [TrainedModel.load(folder.path).predict(images).probabilities for folder in (one, other)]
    assert np.allclose(*found, atol=1e-5)
    assert found[0].std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("fixed", ["backbone.extractor.*", "backbone.*"], ids=["with its neck", "head"])
@pytest.mark.parametrize("use", sorted(detection_data.SMALL))
def test_a_detector_on_maps_is_the_one_on_images(
    use: str, fixed: str, tmp_path: Path, extracted: list[int]
) -> None:
    """What the frozen network makes of an image is several maps, which are kept as one row of numbers."""
    model = detection_data.SMALL[use] | {"frozen": [fixed], "levels": 0}
    config = detection_data.experiment(model, loss={"use": LOSSES.get(use, "cross-entropy")})
    rounds = on_features_and_on_images(config, tmp_path, atol=2e-4)
    assert extracted
    for one, other in rounds:
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-3)
        assert one["server"]["scores"]["ap50"] == pytest.approx(other["server"]["scores"]["ap50"], abs=1e-2)


@pytest.mark.slow
def test_classes_of_pixels_on_maps_are_those_on_images(tmp_path: Path, extracted: list[int]) -> None:
    model = {
        "use": "semantic-fpn",
        "backbone": {"use": "resnet8", "width": 4, "train": "none"},
        "channels": 8,
    }
    config = segments(model=model)
    rounds = on_features_and_on_images(config, tmp_path, atol=2e-5)
    assert extracted
    for one, other in rounds:
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)


def tiny_images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("model", [FROZEN, FRONT], ids=["backbone", "front"])
@pytest.mark.parametrize(
    "engine", ["vectorized", pytest.param(PluginSpec(use="ray", args={"workers": 2}), marks=pytest.mark.long)]
)
def test_engines_agree_on_features(engine: Any, model: dict[str, Any], tmp_path: Path) -> None:
    config = frozen(model=model)
    serial, other = simulate(config, out=tmp_path / "a"), simulate(config, engine=engine, out=tmp_path / "b")
    tolerance = 0 if engine != "vectorized" else 1e-5
    for name, tensor in serial.state.items():
        assert torch.allclose(tensor, other.state[name], rtol=0, atol=tolerance)
    assert [r["server"]["scores"] for r in serial.rounds] == [r["server"]["scores"] for r in other.rounds]


@pytest.mark.slow
def test_each_image_passes_the_backbone_once(tmp_path: Path, extracted: list[int]) -> None:
    config = frozen()
    built = Experiment.build(config)
    simulate(built, out=tmp_path / "a")
    assert built.dataset.test is not None
    images = len(built.split.used()) + len(built.dataset.test)
    assert len(built.split.used()) < len(built.dataset.train)
    assert sum(extracted) == images
    extracted.clear()
    simulate(frozen(seed=3, training={"lr": 0.2}), out=tmp_path / "b")
    assert extracted == []
    simulate(frozen(seed=4), out=tmp_path / "other network")
    assert extracted != []


VIEWS = {"flip": True, "crop": 2, "views": 3}
"""Transforms that are drawn once."""


@pytest.mark.slow
def test_training_draws_one_of_an_images_views(tmp_path: Path, extracted: list[int]) -> None:
    one, other = (
        simulate(frozen(transforms=VIEWS), out=tmp_path / engine, engine=engine)
        for engine in ("serial", "vectorized")
    )
    for name, tensor in one.state.items():
        assert torch.allclose(tensor, other.state[name], rtol=0, atol=1e-5)
    plain = simulate(frozen(), out=tmp_path / "plain")
    assert one.rounds[0]["train_loss"] != pytest.approx(plain.rounds[0]["train_loss"], abs=1e-3)
    again = simulate(frozen(transforms=VIEWS | {"views": 1}), out=tmp_path / "one view")
    assert again.rounds[0]["train_loss"] != one.rounds[0]["train_loss"]


def test_stored_views_are_drawn_evenly() -> None:
    transform = prepare(TransformConfig(views=3), 4)
    x = torch.arange(2 * 4 * 4.0).reshape(2, 4, 4, 1)
    found = transform.apply(x, {"view": torch.tensor([2, 1])})
    assert torch.equal(found[:, :, 0, 0], torch.stack([x[0, :, 2, 0], x[1, :, 1, 0]]))
    views = transform.draw(3000, (1, 1), torch.Generator().manual_seed(0))["view"]
    assert torch.bincount(views).tolist()[0] == 0
    assert all(900 < count < 1100 for count in torch.bincount(views).tolist()[1:])


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"transforms": {"views": 2}}, "all views of an image would be equal; set transforms.flip"),
        ({"transforms": VIEWS | {"mixup": 0.2}}, "transforms.mixup must be 0 where there are views"),
        ({"transforms": VIEWS, "model": {"use": "cnn"}}, "as no frozen layers that could be run alone come"),
        (
            {"transforms": VIEWS, "training": {"cache_features": False}},
            "as training.cache_features = false; leave views out",
        ),
    ],
    ids=["no augmentation", "mixup", "trained", "off"],
)
def test_views_that_cannot_be_stored_are_refused(tables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment.build(frozen(**tables))


def test_views_whose_boxes_would_have_to_move_are_refused() -> None:
    model = detection_data.SMALL["fcos"] | {"frozen": ["backbone.extractor.*"]}
    with pytest.raises(ConfigError, match="as targets of the task 'detection' would have to move with each"):
        Experiment.build(detection_data.experiment(model, transforms={"flip": True, "views": 2}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tables", "notice"),
    [
        ({"transforms": {"flip": True}}, "as transforms.flip changes images anew each time"),
        ({"transforms": {"mixup": 0.4}}, "as transforms.mixup changes images anew each time"),
        ({"training": {"cache_features": False}}, "as training.cache_features = false"),
        ({"model": FROZEN | {"frozen": ["backbone.*", "head.bias"]}}, "as a part of the head is frozen"),
    ],
    ids=["flip", "mixup", "off", "half a head"],
)
def test_why_features_are_computed_anew(
    tables: dict[str, Any], notice: str, tmp_path: Path, extracted: list[int]
) -> None:
    simulate(frozen(rounds=1, **tables), out=tmp_path / "run")
    assert extracted == []
    notices = RunFolder.read(tmp_path / "run").summary()["notices"]
    assert f"every image passes the frozen layers in every round, {notice}" in str(notices)


@pytest.mark.slow
def test_features_too_large_to_keep(
    tmp_path: Path, extracted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_MOST_BYTES", 4 * 4 * 8 * 8 * 160)
    simulate(frozen(rounds=1, model=FRONT), out=tmp_path / "run")
    assert extracted == []
    assert "as their features would take" in str(RunFolder.read(tmp_path / "run").summary()["notices"])


@pytest.mark.slow
@pytest.mark.parametrize("tables", [{}, FEDPER, {"model": FROZEN | {"frozen": ["backbone.dense.*"]}}])
def test_a_trained_backbone_needs_no_notice(tables: dict[str, Any], tmp_path: Path) -> None:
    simulate(tiny(rounds=1, **tables), out=tmp_path / "run")
    assert "backbone" not in str(RunFolder.read(tmp_path / "run").summary()["notices"])


@pytest.mark.slow
def test_a_run_on_features_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulate(frozen(), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "_show", lambda self, record: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            simulate(frozen(), out=tmp_path / "run")
    again = simulate(frozen(), out=tmp_path / "run", resume=True)
    assert len(again.rounds) == 3
    assert all(torch.equal(again.state[name], tensor) for name, tensor in whole.state.items())


@pytest.mark.parametrize(
    "tables",
    [
        {"model": FROZEN | {"dense": 9}},
        {"transforms": {"mean": [0.4]}},
        {"training": {"precision": "bfloat16"}},
        {"seed": 9},
    ],
    ids=["architecture", "transforms", "precision", "tensors"],
)
def test_other_features_have_another_key(tables: dict[str, Any]) -> None:
    def key(config: ExperimentConfig) -> str:
        from fedvision.training.client_trainer import loop_settings

        model = Experiment.build(config).model
        return feature_cache._recipe(config, model.backbone, loop_settings(config, 1).forward)  # type: ignore[arg-type]

    assert key(frozen()) == key(frozen(rounds=9, training={"lr": 0.5}))
    drawn = {"transforms": {"flip": True, "crop": 2, "views": 3}}
    assert key(frozen()) == key(frozen(**drawn))  # images to measure on are seen as they are
    assert key(frozen()) != key(frozen(**tables))
