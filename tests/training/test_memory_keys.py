"""``accumulate``, ``checkpoint_activations`` and ``compile`` change what a step costs, not what it does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedvision import seeding, simulate
from fedvision.config import TrainingConfig, TransformConfig
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.models.cnn import cnn
from fedvision.models.mkldnn_layout import avoid_narrow_strides
from fedvision.models.resnet import resnet8
from fedvision.models.vit import vit
from fedvision.training import compilation
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.loop import fit
from fedvision.types import State, TrainRequest
from tests.experiments import tiny
from tests.test_simulation import same
from tests.training.test_loop import CLASSES, SIZE, make_model, make_shard, plain, settings, state_of, train

SHAPE = {"num_classes": CLASSES, "in_channels": 1, "image_size": (SIZE, SIZE)}
VIT = {"use": "vit", "patch": 4, "dim": 8, "depth": 2}


def network(name: str) -> nn.Module:
    with seeding.torch_global(1, "model"):
        if name == "resnet8":
            model = resnet8(**SHAPE, width=4, norm="batch")
            avoid_narrow_strides(model)
            return model
        if name == "cnn":
            return cnn(**SHAPE, width=4, dense=8)
        return vit(**SHAPE, patch=3, dim=8, depth=2, heads=2, dropout=0.2 if name == "dropout" else 0.0)


def close(one: State, other: State) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 8, 100])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"clip_norm": 0.05, "momentum": 0.9},
        {"transforms": TransformConfig(mixup=1.0, flip=True)},
    ],
)
def test_a_step_in_parts_is_the_step_on_all(parts: int, keys: dict[str, Any]) -> None:
    """Batches are of 8, 8 and 5 images, so that parts are of unequal size."""
    whole = train(make_model(), settings(**keys))
    found = train(make_model(), settings(**keys, accumulate=parts))
    close(whole.state, found.state)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    assert found.steps == whole.steps == 3


class Counting(nn.Module):
    """Notes the sizes of the batches that come by."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        return x


@pytest.mark.parametrize(
    ("parts", "single", "sizes"),
    [
        (1, True, [8, 8, 5]),
        (3, True, [3, 3, 2, 3, 3, 2, 2, 2, 1]),
        (3, False, [3, 3, 2, 3, 3, 2, 3, 2]),
        (6, False, [2, 2, 2, 2, 2, 2, 2, 2, 3, 2]),
    ],
)
def test_parts_are_of_about_equal_size_and_of_two_images_where_needed(
    parts: int, single: bool, sizes: list[int]
) -> None:
    counting = Counting()
    train(make_model(counting), dataclasses.replace(settings(accumulate=parts), single=single))
    assert counting.sizes == sizes


def test_batch_norm_measures_each_part() -> None:
    """The running mean after a batch of two parts is that of two steps of the average."""
    shard = make_shard(8)
    norm = nn.BatchNorm1d(SIZE * SIZE, affine=False)
    model = nn.Sequential(nn.Flatten(), norm, nn.Linear(SIZE * SIZE, CLASSES))
    train(model, settings(accumulate=2), shard)
    x = (torch.from_numpy(shard.images).reshape(8, -1) / 255 - 0.5) / 0.25
    order = torch.from_numpy(seeding.numpy_stream(5, "batches", 2, 4).permutation(8))
    first, second = x[order[:4]].mean(0), x[order[4:]].mean(0)
    torch.testing.assert_close(norm.running_mean, 0.9 * 0.1 * first + 0.1 * second)
    assert int(norm.num_batches_tracked) == 2


def test_an_algorithms_loss_is_asked_for_each_part() -> None:
    class Doubled(ClientAlgorithm):
        def loss(self, model: Any, x: Any, labels: Any, task_loss: Any) -> torch.Tensor:
            return 2 * task_loss(model(x), labels)

    found = []
    for parts in (1, 4):
        model = make_model()
        task = TrainRequest(round=1, client=0, state=state_of(model))
        chosen = settings(accumulate=parts)
        found.append(fit(model, make_shard(), task, loss=plain, algorithm=Doubled(), settings=chosen))
    close(found[0].state, found[1].state)
    assert found[0].loss == pytest.approx(found[1].loss)


@pytest.mark.parametrize("name", ["resnet8", "vit", "dropout"])
def test_activations_computed_anew_give_the_same_bits(name: str) -> None:
    plainly = train(network(name), settings(epochs=2))
    found = train(network(name), settings(epochs=2, checkpoint_activations=True))
    assert same(plainly.state, found.state)
    assert found.loss == plainly.loss


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    shard = make_shard(16)  # two batches of one size, which are compiled once
    plainly, model = train(network("cnn"), settings(), shard), network("cnn")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    chosen = settings()
    compilation.compile_model(model, torch.randn(8, 1, SIZE, SIZE), chosen.forward)
    assert same(before, model.state_dict())
    found = train(model, chosen, shard)
    close(plainly.state, found.state)


@pytest.mark.slow
def test_a_run_is_compiled_and_its_model_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []

    def backend(graph: Any, inputs: Any) -> Any:
        used.append(graph)
        return graph.forward

    monkeypatch.setattr(compilation, "BACKEND", backend)
    keys = {"lr": 0.1, "batch_size": 32}
    plainly = simulate(tiny(rounds=1, training=keys), out=tmp_path / "plain")
    assert not used
    found = simulate(tiny(rounds=1, training={**keys, "compile": True}), out=tmp_path / "compiled")
    assert used
    close(plainly.state, found.state)


def test_a_network_that_cannot_be_compiled_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("there is no compiler")

    monkeypatch.setattr(compilation, "BACKEND", backend)
    with pytest.raises(ConfigError, match=r"training\.compile: torch\.compile fails on this network here"):
        simulate(tiny(rounds=1, training={"compile": True}), out=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys", [{"accumulate": 2}, {"checkpoint_activations": True}], ids=["accumulate", "checkpoints"]
)
def test_clients_trained_together_are_trained_one_by_one(keys: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(rounds=1, model=VIT, training={"lr": 0.1, "batch_size": 32, **keys})
    serial = simulate(config, out=tmp_path / "serial")
    vectorized = simulate(config, engine="vectorized", out=tmp_path / "vectorized")
    assert same(serial.state, vectorized.state)
    (key,) = keys
    notices = vectorized.folder.summary()["notices"]
    assert any(f"trained one by one: training.{key} = " in notice for notice in notices)


def test_keys_that_do_not_fit_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"training\.accumulate must be >= 1, not 0"):
        TrainingConfig(accumulate=0)
    with pytest.raises(ConfigError, match=r"training\.compile cannot go with training\.checkpoint_activ"):
        TrainingConfig(compile=True, checkpoint_activations=True)
    with pytest.raises(ConfigError, match=r"checkpoint_activations: \[model\] use = 'cnn' has no two blocks"):
        Experiment.build(tiny(training={"checkpoint_activations": True}))


@pytest.mark.long
def test_torchs_own_kernels_train_to_the_same() -> None:
    shard, chosen = make_shard(16), settings()
    plainly, model = train(make_model(), chosen, shard), make_model()
    compilation.compile_model(model, torch.randn(8, 1, SIZE, SIZE), chosen.forward)
    close(plainly.state, train(model, chosen, shard).state)
