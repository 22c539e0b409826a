"""A finished run as a teacher: its logits on another experiment's batches are those that it predicts with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvision.api import simulate
from fedvision.config import ExperimentConfig, TransformConfig
from fedvision.data.transforms import prepare
from fedvision.errors import ConfigError
from fedvision.trained_model import TrainedModel
from fedvision.training import teacher
from tests.experiments import digits_of_several_labels, several_labels, tiny

CLASSES = tuple("0123456789")
IMAGE = (8, 8, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    transforms = {"mean": [0.3], "std": [0.4], "size": 16}
    simulate(tiny(rounds=1, model={"use": "resnet8", "width": 4}, transforms=transforms), out=out)
    return out


def read(run: Path, classes: tuple[str, ...] = CLASSES, image: Any = IMAGE, **tables: Any) -> Any:
    return teacher.read(str(run), tiny(**tables), classes, image, key="strategy.teacher")


@pytest.mark.parametrize(
    ("transforms", "image"),
    [
        ({"mean": [0.3], "std": [0.4], "size": 16}, IMAGE),
        ({}, IMAGE),
        ({"mean": [0.1], "std": [0.9], "size": 24}, IMAGE),
    ],
    ids=["its own", "other constants, smaller", "larger"],
)
def test_it_predicts_on_batches_of_the_experiment(run: Path, transforms: dict[str, Any], image: Any) -> None:
    """The probabilities of ``TrainedModel.predict``, where images are not first made larger than its."""
    images = np.random.default_rng(0).integers(0, 256, (6, *image), np.uint8)
    description, state = read(run, image=image, transforms=transforms)
    x = prepare(
        TransformConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in transforms.items()}), 1
    )
    network = teacher.network(description.to_text(), state, torch.device("cpu"))
    with torch.no_grad():
        found = network(x.inputs(torch.from_numpy(images))).softmax(1).numpy()
    expected = TrainedModel.load(run, device="cpu").predict(images).probabilities
    if transforms.get("size") == 24:  # resized twice: close, and not equal
        assert np.abs(found - expected).max() < 0.02
    else:
        assert np.allclose(found, expected, atol=1e-5)


def test_classes_are_found_by_their_names(run: Path) -> None:
    description, state = read(run, classes=("7", "0", "3"))
    assert description.order == (7, 0, 3)
    network = teacher.network(description.to_text(), state, torch.device("cpu"))
    whole, same = read(run)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        part = network(x)
        assert torch.equal(part, teacher.network(whole.to_text(), same, torch.device("cpu"))(x)[:, [7, 0, 3]])


def test_it_neither_trains_nor_changes(run: Path) -> None:
    description, state = read(run)
    network = teacher.network(description.to_text(), state, torch.device("cpu"))
    assert network is teacher.network(description.to_text(), state, torch.device("cpu")), "built once"
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(torch.randn(4, 1, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_features_in_the_place_of_images_are_refused(run: Path) -> None:
    description, state = read(run)
    network = teacher.network(description.to_text(), state, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"batches \[2, 64, 1, 1\] in the place of images \[1, 8, 8\]"):
        network(torch.zeros(2, 64, 1, 1))


def changed(run: Path, folder: Path, **keys: Any) -> Path:
    """Copy a run's model with other keys in its description."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    table = json.loads((run / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(table | keys))
    return folder


def test_what_cannot_teach_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^strategy.teacher = .*nothing.* cannot be read"):
        read(tmp_path / "nothing")
    (tmp_path / "bare.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"no model.json beside it; name the folder of a finished run"):
        read(tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match="it does not know cat; its classes are 0, 1"):
        read(run, classes=("1", "cat"))
    with pytest.raises(ConfigError, match="takes images of 1 channel, and the experiment's have 3"):
        read(run, image=(8, 8, 3))
    with pytest.raises(ConfigError, match=r"head.bias stayed on its clients"):
        read(changed(run, tmp_path / "personal", personal=["head.bias"]))
    with pytest.raises(ConfigError, match=r"its model.json is damaged"):
        read(changed(run, tmp_path / "damaged", classes=None))
    other = {**json.loads((run / "model.json").read_text())["model"], "width": 8}
    with pytest.raises(ConfigError, match="do not fit the teacher's network 'resnet8'"):
        read(changed(run, tmp_path / "other", model=other))
    with pytest.raises(ConfigError, match=r"the experiment: .* its task is 'multi-label'"):
        teacher.read(str(run), _multi_label(tmp_path), CLASSES, IMAGE, key="strategy.teacher")


def _multi_label(folder: Path) -> ExperimentConfig:
    return tiny(**several_labels(digits_of_several_labels(folder)))


def test_a_gray_image_is_shown_to_a_teacher_for_colour(tmp_path: Path) -> None:
    out = tmp_path / "colour"
    simulate(tiny(rounds=1, transforms={"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}), out=out)
    images = np.random.default_rng(1).integers(0, 256, (5, *IMAGE), np.uint8)
    description, state = read(out)
    assert (description.channels, description.images) == (3, (1, 8, 8))
    network = teacher.network(description.to_text(), state, torch.device("cpu"))
    with torch.no_grad():
        found = nn.functional.softmax(
            network(prepare(TransformConfig(), 1).inputs(torch.from_numpy(images))), 1
        )
    assert np.allclose(
        found.numpy(), TrainedModel.load(out, device="cpu").predict(images).probabilities, atol=1e-5
    )
