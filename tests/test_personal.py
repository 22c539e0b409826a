"""Personal tensors end to end: FedPer by hand, on every engine that one process has, and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedvision import simulate
from fedvision.data.partition.client_shards import ClientShards
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import get_state, load_state, size_in_bytes
from fedvision.reporting.render import PERSONAL, run_table
from fedvision.training.client_state import ClientStateStore
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import State, TrainRequest
from tests.experiments import FEDPER, tiny
from tests.test_simulation import same, stopping_after

MEASURED = {"holdout": 0.2, "with_training": True}


def heads(run: Path) -> list[State]:
    """Return what each of the five clients kept last."""
    found = []
    for client in range(5):
        files = sorted((run / f"clients/000000/{client:09d}").glob("round-*.safetensors"))
        loaded = load_file(files[-1])
        found.append({name.removeprefix("personal/"): tensor for name, tensor in loaded.items()})
    return found


@pytest.mark.slow
def test_a_round_of_fedper_by_hand(tmp_path: Path) -> None:
    """The backbone is the mean of the clients' weighted by examples; heads are what each client trained."""
    config = tiny(rounds=1, evaluation={"holdout": 0.2}, **FEDPER)
    result = simulate(config, out=tmp_path / "run")
    experiment = Experiment.build(config)
    shards = ClientShards(experiment.dataset.train, experiment.split)
    start = get_state(experiment.model, ParameterGroups.of(experiment.model, config.model).shared)
    mean: State = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in start.items()}
    loaded, images = heads(tmp_path / "run"), sum(len(shards.train(client)) for client in range(5))
    right = 0
    for client in range(5):
        memory = ClientStateStore(tmp_path / f"alone-{client}", 1)
        model = Experiment.build(config).model
        trainer = ClientTrainer.open(config, model, 10, shards, memory)
        update = trainer.train(TrainRequest(round=1, client=client, state=start))
        for name, tensor in update.state.items():
            mean[name] += tensor.double() * len(shards.train(client)) / images
        assert same(update.personal, loaded[client])
        assert set(loaded[client]) == {"head.weight", "head.bias"}
    for name, tensor in result.state.items():
        torch.testing.assert_close(tensor, mean[name].float(), rtol=1e-6, atol=1e-7)
    assert len({tuple(head["head.bias"].tolist()) for head in loaded}) == 5
    for client in range(5):
        model, shard = Experiment.build(config).model.eval(), shards.test(client)
        load_state(model, {**result.state, **loaded[client]})
        x = (torch.from_numpy(shard.images[shard.indices]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        right += int((model(x).argmax(1).numpy() == shard.labels[shard.indices]).sum())
    tested = sum(len(shards.test(client)) for client in range(5))
    assert result.scores["accuracy"] == pytest.approx(right / tested)


def test_heads_never_leave_the_clients_and_the_server_measures_nothing(tmp_path: Path) -> None:
    config = tiny(rounds=2, evaluation={"holdout": 0.2, "every": 2}, **FEDPER)
    result = simulate(config, out=tmp_path / "run")
    backbone = size_in_bytes(result.state)
    assert not any(name.startswith("head") for name in result.state)
    assert result.rounds[0]["bytes"] == {"down": 5 * backbone, "up": 5 * backbone}
    assert [record["server"] for record in result.rounds] == [None, None]
    assert result.scores == result.rounds[-1]["local"]["scores"]
    (notice,) = [note for note in result.folder.summary()["notices"] if "model.personal" in note]
    assert "keeps head.weight, head.bias on the clients" in notice
    assert "each client measures its personal model on its own held-out images" in notice
    shown = run_table(result.folder).split()
    assert all(word in shown for word in PERSONAL.split())
    assert "server" not in shown[: shown.index("accuracy")]
    assert json.loads((tmp_path / "run/model.json").read_text())["personal"] == ["head.weight", "head.bias"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_a_run_that_is_cut_ends_in_the_same_bits_heads_included(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(rounds=4, checkpoint_every=2, evaluation=MEASURED, **FEDPER)
    whole = simulate(config, engine=engine, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, engine=engine, out=tmp_path / "cut")
    # The third round is run again: heads start from what they were after the second.
    resumed = simulate(config, engine=engine, out=tmp_path / "cut", resume=True)
    assert same(whole.state, resumed.state)
    assert (tmp_path / "whole/rounds.jsonl").read_bytes() == (tmp_path / "cut/rounds.jsonl").read_bytes()
    both = zip(heads(tmp_path / "whole"), heads(tmp_path / "cut"), strict=True)
    assert all(same(one, other) for one, other in both)


@pytest.mark.parametrize(
    "keys",
    [{"frozen": ["backbone.features.*"]}, {"frozen": ["backbone.features.conv1.*"], "personal": ["head.*"]}],
)
def test_frozen_tensors_stay_and_cost_no_bytes(keys: dict[str, Any], tmp_path: Path) -> None:
    model = {**tiny().model.args, "use": "cnn", **keys}
    config = tiny(rounds=2, model=model)
    result = simulate(config, out=tmp_path / "run")
    initial = Experiment.build(config).model.state_dict()
    saved = load_file(tmp_path / "run/model.safetensors")
    frozen = {name for name in saved if name.startswith(keys["frozen"][0].removesuffix("*"))}
    assert frozen
    assert all(torch.equal(saved[name], initial[name]) for name in frozen)
    assert not frozen & result.state.keys()
    sent = size_in_bytes(result.state)
    assert result.rounds[0]["bytes"] == {"down": 5 * sent, "up": 5 * sent}
    assert all(not torch.equal(result.state[name], initial[name]) for name in result.state)


def test_fedper_without_personal_tensors_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'use = \'fedper\' .* set model\.personal = \["head\.\*"\]'):
        Experiment.build(tiny(strategy={"use": "fedper"}))
