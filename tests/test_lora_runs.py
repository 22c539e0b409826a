"""LoRA end to end: what is sent and averaged, on engines of one process, resumed, and used afterwards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fedvision
from fedvision import simulate
from fedvision.config import ExperimentConfig, LoraConfig
from fedvision.data.partition.client_shards import ClientShards
from fedvision.data.sources.arrays import digits
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.models.lora import adapter_names, adapters, merge
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import floating, get_state, load_state, size_in_bytes
from fedvision.training.client_state import ClientStateStore
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import State, TrainRequest
from tests.experiments import tiny
from tests.test_simulation import same, stopping_after

VIT = {"use": "vit", "patch": 4, "dim": 16, "depth": 2, "train": "lora"}
CNN = {"use": "cnn", "width": 8, "dense": 16, "train": "lora"}


def lora(model: dict[str, Any] = VIT, exact: bool = False, **tables: Any) -> ExperimentConfig:
    keys = {"rank": 2, "alpha": 8, "exact": exact}
    return tiny(
        **{"rounds": 2, "training": {"lr": 0.3, "batch_size": 32}, **tables}, model={**model, "lora": keys}
    )


def clients_after_a_round(config: ExperimentConfig, folder: Path) -> list[tuple[int, State]]:
    """Return each client's images and whole merged network after the first round."""
    experiment = Experiment.build(config)
    shards = ClientShards(experiment.dataset.train, experiment.split)
    start = get_state(experiment.model, ParameterGroups.of(experiment.model, config.model).shared)
    found = []
    for client in range(5):
        memory = ClientStateStore(folder / f"alone-{client}", 1)
        trainer = ClientTrainer.open(config, Experiment.build(config).model, 10, shards, memory)
        trained = trainer.train(TrainRequest(round=1, client=client, state=start)).state
        load_state(trainer.model, trained)
        found.append((len(shards.train(client)), dict(floating(merge(trainer.model)))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
def test_the_mean_of_adapters_is_the_mean_change_only_where_a_is_fixed(exact: bool, tmp_path: Path) -> None:
    config = lora(exact=exact, rounds=1)
    simulate(config, out=tmp_path / "run")
    found = load_file(tmp_path / "run/model.safetensors")
    clients = clients_after_a_round(config, tmp_path)
    images = sum(count for count, _ in clients)
    error = 0.0
    for name, tensor in found.items():
        mean = sum(count * state[name].detach().double() for count, state in clients) / images
        error = max(error, float((mean - tensor).abs().max()))
    assert error < 1e-6 if exact else error > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("model", [VIT, CNN])
def test_only_adapters_and_head_are_trained_and_sent(
    model: dict[str, Any], exact: bool, tmp_path: Path
) -> None:
    config = lora(model, exact)
    result = simulate(config, out=tmp_path / "run")
    begun = Experiment.build(config).model
    wanted = [name for name in adapter_names(begun) if not (exact and name.endswith("lora_a"))]
    assert set(result.state) == {*wanted, "head.weight", "head.bias"}
    assert len(wanted) > 1
    sent, initial = size_in_bytes(result.state), begun.state_dict()
    assert result.rounds[0]["bytes"] == {"down": 5 * sent, "up": 5 * sent}
    assert all(not torch.equal(tensor, initial[name]) for name, tensor in result.state.items())
    saved = load_file(tmp_path / "run/model.safetensors")
    layers = {f"{name}.{layer.OF}" for name, layer in adapters(begun)}
    assert not any("lora" in name for name in saved)
    for name, tensor in saved.items():
        assert torch.equal(tensor, initial[name]) != (name in layers or name.startswith("head."))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_a_run_that_is_cut_ends_in_the_same_bits(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lora(rounds=3)
    whole = simulate(config, engine=engine, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, engine=engine, out=tmp_path / "cut")
    resumed = simulate(config, engine=engine, out=tmp_path / "cut", resume=True)
    assert same(whole.state, resumed.state)
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (
        tmp_path / "cut/model.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("model", [VIT, CNN])
def test_clients_trained_together_end_as_alone(model: dict[str, Any], exact: bool, tmp_path: Path) -> None:
    config = lora(model, exact, rounds=1, training={"lr": 0.1, "batch_size": 32})
    serial = simulate(config, out=tmp_path / "serial")
    vectorized = simulate(config, engine="vectorized", out=tmp_path / "vectorized")
    assert not vectorized.folder.summary()["notices"][len(serial.folder.summary()["notices"]) :]
    for name, tensor in serial.state.items():
        torch.testing.assert_close(vectorized.state[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_runs_model_is_a_plain_network(tmp_path: Path) -> None:
    result = simulate(lora(), out=tmp_path / "run")
    page = json.loads((tmp_path / "run/model.json").read_text())
    assert page["merged"] == {"rank": 2, "alpha": 8.0, "targets": ["*"], "exact": False}
    assert page["model"]["train"] == "all"
    model = fedvision.load(tmp_path / "run", device="cpu")
    assert not list(adapters(model.network))
    scores = model.evaluate(digits(), part="test")
    assert scores.scores["accuracy"] == pytest.approx(result.scores["accuracy"], abs=2 / 360)
    images = digits().test
    assert images is not None
    assert len(model.predict(images.images[:3]).labels) == 3


def test_a_run_begins_with_the_model_of_another(tmp_path: Path) -> None:
    """Whatever the first run trained, the second begins with its outputs and with new adapters."""
    simulate(lora(rounds=1), out=tmp_path / "first")
    first = load_file(tmp_path / "first/model.safetensors")
    for train in ("lora", "all"):
        start = {**VIT, "train": train, "weights": str(tmp_path / "first")}
        state = Experiment.build(lora(start)).model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in first.items())
        assert not any(tensor.any() for name, tensor in state.items() if name.endswith("lora_b"))
    begun = Experiment.build(lora()).model
    with torch.no_grad():
        for _, layer in adapters(begun):
            layer.lora_b.fill_(0.5)
    save_file(begun.state_dict(), tmp_path / "adapters.safetensors")
    kept = Experiment.build(lora({**VIT, "weights": str(tmp_path / "adapters.safetensors")})).model
    assert all(bool((layer.lora_b == 0.5).all()) for _, layer in adapters(kept))


def test_the_network_begins_with_the_bits_that_it_has_without_adapters() -> None:
    bare = Experiment.build(lora({**VIT, "train": "all"})).model.state_dict()
    model = Experiment.build(lora()).model
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in bare.items())
    again, other = Experiment.build(lora()).model, Experiment.build(dataclasses.replace(lora(), seed=4)).model
    for (_, one), (_, two), (_, three) in zip(adapters(model), adapters(again), adapters(other), strict=True):
        assert torch.equal(one.lora_a, two.lora_a)
        assert not torch.equal(one.lora_a, three.lora_a)


def test_each_client_may_keep_its_adapters(tmp_path: Path) -> None:
    config = lora({**VIT, "personal": ["*.lora_b"]}, exact=True, evaluation={"holdout": 0.2})
    result = simulate(config, out=tmp_path / "run")
    assert set(result.state) == {"head.weight", "head.bias"}
    with pytest.raises(
        fedvision.errors.RunFolderError, match="lora_b and 6 more were trained and stayed on the clients"
    ):
        fedvision.load(tmp_path / "run", device="cpu").predict(np.zeros((1, 8, 8, 1), np.uint8))


@pytest.mark.parametrize(
    ("model", "keys", "sentence"),
    [
        (VIT, {"rank": 0}, "model.lora.rank must be >= 1, not 0"),
        (VIT, {"alpha": 0}, "model.lora.alpha must be > 0 and finite, not 0"),
        (VIT, {"targets": []}, "model.lora.targets must hold a pattern"),
        (VIT, {"targets": ["*.atention"]}, r"model.lora.targets: '\*.atention' matches no linear layer"),
        (VIT, {"ranks": 2}, "model.lora.ranks: there is no such key; did you mean 'rank'"),
        (
            {"use": "torch.nn:Identity", "train": "lora"},
            {},
            'model.train = "lora" needs a network of backbone and head',
        ),
    ],
)
def test_keys_that_do_not_fit_are_one_sentence(
    model: dict[str, Any], keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment.build(tiny(model={**model, "lora": keys}))


def test_the_canonical_file_has_the_adapters_keys() -> None:
    config = lora()
    assert ExperimentConfig.from_toml(config.to_toml()) == config
    assert config.model.lora == LoraConfig(rank=2, alpha=8.0)
