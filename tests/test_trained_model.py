"""A run's model used without the run: the run's own scores to the last bit, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvision
from fedvision import registry, simulate
from fedvision.api import RunResult
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.sources.arrays import digits
from fedvision.errors import ConfigError, DataError, PluginError, RunFolderError
from fedvision.tasks.confusion import ConfusionCounts
from tests.experiments import tiny

NETWORK = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes, in_channels, image_size):
        size = in_channels * image_size[0] * image_size[1]
        super().__init__(nn.Flatten(), nn.Linear(size, num_classes))


def images(confusion):
    return int(confusion.sum())
"""
RUNS: dict[str, dict[str, Any]] = {
    "cnn": {"rounds": 2, "evaluation": {"metrics": ["kappa"], "batch_size": 64}},
    "batch-norm": {"model": {"use": "resnet8", "norm": "batch", "width": 4}},
    "bfloat16": {"training": {"lr": 0.1, "precision": "bfloat16"}, "loss": {"use": "ldam", "scale": 20.0}},
    "vit": {
        "model": {"use": "vit", "patch": 4, "dim": 8, "depth": 1},
        "training": {"lr": 0.1, "channels_last": False},
        "transforms": {"mean": [0.3], "std": [0.2], "flip": True},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunResult]:
    """Return a run by its name; each is made once."""
    made: dict[str, RunResult] = {}

    def make(name: str) -> RunResult:
        if name not in made:
            config = tiny(**{"rounds": 1, **RUNS[name]})
            made[name] = simulate(config, out=tmp_path_factory.mktemp(name) / "run")
        return made[name]

    return make


@pytest.fixture
def copied(run: Callable[[str], RunResult], tmp_path: Path) -> Path:
    """The two files of a run's model, alone in a folder."""
    for name in ("model.json", "model.safetensors"):
        shutil.copy(run("cnn").folder.path / name, tmp_path)
    return tmp_path


def changed(run: Path, **values: Any) -> None:
    """Change keys of a run's ``model.json``."""
    table = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(table | values))


@pytest.mark.parametrize("name", RUNS)
def test_the_runs_own_test_images_give_the_runs_own_numbers(
    name: str, run: Callable[[str], RunResult]
) -> None:
    recorded = run(name).rounds[-1]["server"]
    model, data = fedvision.load(run(name).folder.path), digits()
    found = model.evaluate(data)
    assert found.scores == recorded["scores"]
    assert found.loss == recorded["loss"]
    assert found.confusion.to_record() == recorded["confusion"]
    assert data.test is not None
    predicted = model.predict(data.test.images)
    again = ConfusionCounts.from_predictions(data.test.labels, predicted.labels, 10)
    assert again.to_record() == recorded["confusion"]
    assert np.allclose(predicted.probabilities.sum(1), 1, atol=1e-5)
    assert np.array_equal(predicted.probabilities.max(1), [best for _, _, best in predicted.rows()])


def test_the_predicted_probability_is_that_of_the_loss_that_trained(run: Callable[[str], RunResult]) -> None:
    """Cross-entropy of the probabilities is the measured loss: LDAM's scale and bfloat16 are in them."""
    model, test = fedvision.load(run("bfloat16").folder.path), digits().test
    assert test is not None
    given = model.predict(test.images).probabilities[np.arange(len(test)), test.labels]
    assert -np.log(given.astype(np.float64)).mean() == pytest.approx(
        run("bfloat16").rounds[-1]["server"]["loss"], rel=1e-5
    )


def test_two_files_are_enough_and_files_of_the_images_size_are_the_arrays(copied: Path) -> None:
    model, test = fedvision.load(str(copied)), digits().test
    assert test is not None
    for number, image in enumerate(test.images[:3]):
        Image.fromarray(image[..., 0]).save(copied / f"{number}.png")
    Image.new("L", (9, 9)).save(copied / "larger.png")
    found = model.predict(copied)
    assert np.array_equal(found.probabilities, model.predict(test.images[:3]).probabilities)
    assert list(found.names) == [str(copied / f"{number}.png") for number in range(3)]
    assert found.unreadable == {str(copied / "larger.png"): "it has 9 x 9 pixels, not 8 x 8"}
    with pytest.raises(DataError, match=r"none of 1 images can be read: .*larger\.png"):
        model.predict(copied / "larger.png")


def test_files_are_decoded_as_in_the_run(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (40, 12, 20), np.uint8)
    for number, image in enumerate(drawn):
        file = tmp_path / f"data/{'test' if number % 2 else 'train'}/{'ab'[number // 2 % 2]}/{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    data = {"use": "image-folder", "path": str(tmp_path / "data"), "size": 6, "channels": 1, "fit": "pad"}
    partition = {"use": "iid", "clients": 2}
    result = simulate(tiny(rounds=1, data=data, partition=partition), out=tmp_path / "run")
    model = fedvision.load(tmp_path / "run")
    found = model.predict([tmp_path / "data/test/b", tmp_path / "data/test/a"])
    labels = np.array(["ab".index(Path(name).parent.name) for name in found.names])
    assert labels.tolist() == [1] * 10 + [0] * 10
    again = ConfusionCounts.from_predictions(labels, found.labels, 2)
    assert again.to_record() == result.rounds[-1]["server"]["confusion"]
    assert model.files_as() == {"size": 6, "channels": 1, "fit": "pad", "range": 0.0}


def test_classes_are_matched_by_name_with_a_notice_on_missing_ones(copied: Path) -> None:
    model, test = fedvision.load(copied), digits().test
    assert test is not None
    retained = test.labels >= 2
    turned = ImageSet(images=test.images[retained], labels=9 - test.labels[retained])
    found = model.evaluate(Dataset(train=turned, classes=tuple("9876543210")))
    expected = model.evaluate(digits())
    matrix = expected.confusion.matrix()
    matrix[:2] = 0
    assert np.array_equal(found.confusion.matrix(), matrix)
    assert found.notices == ("there are no images of 0, 1, so the scores are without these classes",)
    with pytest.raises(DataError, match="the data has images of 'x', which the model does not know"):
        model.evaluate(Dataset(train=turned, classes=("x", *"876543210")))


def test_the_part_that_is_measured(copied: Path) -> None:
    model, data = fedvision.load(copied), digits()
    assert data.test is not None
    sizes = len(data.train), len(data.test)
    assert model.evaluate(data).confusion.examples == sizes[1]
    assert model.evaluate(data, part="test").confusion.examples == sizes[1]
    assert model.evaluate(data, part="train").confusion.examples == sizes[0]
    without = dataclasses.replace(data, test=None)
    assert model.evaluate(without).confusion.examples == sizes[0]
    with pytest.raises(DataError, match="the data has no test images"):
        model.evaluate(without, part="test")


def test_images_of_another_shape_are_refused(copied: Path) -> None:
    model = fedvision.load(copied)
    with pytest.raises(DataError, match=r"is uint8 \[2, 9, 8, 1\], and the model takes uint8 \[N, 8, 8, 1\]"):
        model.predict(np.zeros((2, 9, 8, 1), np.uint8))
    wide = ImageSet(images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.zeros(2, np.int64))
    with pytest.raises(DataError, match=r"\[2, 8, 8, 3\]"):
        model.evaluate(Dataset(train=wide, classes=("0",)))
    assert len(model.predict(np.zeros((0, 8, 8, 1), np.uint8))) == 0


def test_files_become_square_images_alone(copied: Path) -> None:
    model = fedvision.load(copied)
    image = dataclasses.replace(model.description.image, width=6)
    oblong = dataclasses.replace(model, description=dataclasses.replace(model.description, image=image))
    assert model.files_as() == {"size": 8, "channels": 1, "fit": "exact", "range": 0.0}
    with pytest.raises(DataError, match="the model takes images of 8 x 6 x 1, which no file is brought to"):
        oblong.files_as()
    with pytest.raises(DataError, match=r"images of 8 x 6 with 1 channel\(s\), which no file is brought to"):
        oblong.predict(copied)


def test_tensors_with_another_digest_are_refused(copied: Path) -> None:
    file = copied / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"model.safetensors: its SHA-256 is .*: the file was changed"):
        fedvision.load(copied)
    file.unlink()
    with pytest.raises(RunFolderError, match=r"model.safetensors: it cannot be read: No such file"):
        fedvision.load(copied)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"classes": list("abc"), "class_counts": [3, 2, 1]}, "do not fit the network 'cnn'"),
        ({"model": {"use": "cnn", "width": 8, "dense": 8}}, "do not fit the network 'cnn'"),
        ({"model": {"use": "cnn", "colour": 8}}, "model.json: .*it takes no key 'colour'"),
        ({"model": {"use": "cmn"}}, "model.json: .*did you mean 'cnn'"),
        ({"transforms": {"mean": [0.1, 0.2], "std": [1.0]}}, "model.json: transforms.mean holds 2 numbers"),
    ],
)
def test_a_description_of_another_model_is_refused(
    values: dict[str, Any], sentence: str, copied: Path
) -> None:
    changed(copied, **values)
    with pytest.raises(ConfigError, match=sentence):
        fedvision.load(copied)


def votes() -> object:
    """What is no task."""
    return object()


def test_a_task_that_is_none_is_refused(copied: Path) -> None:
    changed(copied, task={"use": f"{__name__}:votes"})
    with pytest.raises(PluginError, match=r"votes': it is no fedvision\.tasks\.base\.Task"):
        fedvision.load(copied)


def test_tensors_that_stayed_on_clients_leave_nothing_to_use(tmp_path: Path) -> None:
    model = {"use": "resnet8", "norm": "batch", "width": 4, "shared": "no-batch-norm-statistics"}
    simulate(tiny(rounds=1, model=model, evaluation={"holdout": 0.2}), out=tmp_path / "run")
    loaded = fedvision.load(tmp_path / "run")
    for use in (lambda: loaded.predict(np.zeros((1, 8, 8, 1), np.uint8)), lambda: loaded.evaluate(digits())):
        with pytest.raises(RunFolderError, match="were trained and stayed on the clients; train with shared"):
            use()


def test_module_of_a_plugin_network(tmp_path: Path) -> None:
    """A network's module is found where the run found it and beside the model."""
    home, run = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    (home / "used_net.py").write_text(NETWORK)
    registry.allow_folder(home)
    evaluation = {"metrics": ["used_net:images"]}
    result = simulate(tiny(rounds=1, model={"use": "used_net:Net"}, evaluation=evaluation), out=run)
    expected = result.rounds[-1]["server"]["scores"]
    assert expected["used_net:images"] == 355
    registry.allow_folder(tmp_path)
    model = fedvision.load(run)
    assert (model.evaluate(digits()).scores, model.notices) == (expected, ())
    (home / "used_net.py").rename(run / "used_net.py")
    model = fedvision.load(run)
    assert (model.evaluate(digits()).scores, model.notices) == (expected, ())
    (run / "used_net.py").write_text(f"{NETWORK}\n# mended\n")
    assert fedvision.load(run).notices == (
        "the source of used_net is not that of the run, so the network may compute something else",
    )
    (run / "used_net.py").unlink()
    with pytest.raises(PluginError, match=r"model.json: .*there is no module 'used_net'"):
        fedvision.load(run)
    assert registry.allowed_folder() == tmp_path
