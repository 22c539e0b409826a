"""Pruning: channels without effect go and nothing changes, what is left is a network that trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fedvision
from fedvision import ExperimentConfig, pruning, simulate
from fedvision.cli.main import main
from fedvision.errors import ConfigError, RunFolderError
from tests.experiments import tiny

CASES: dict[str, dict[str, Any]] = {
    "cnn": {"use": "cnn", "width": 8, "dense": 12},
    "resnet8": {"use": "resnet8", "width": 8, "norm": "batch"},
    "resnet18": {"use": "resnet18", "width": 8, "norm": "batch"},
    "resnet20": {"use": "resnet20", "width": 8, "norm": "batch"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruning") / "run"
    training = {"batch_size": 16, "lr": 0.05, "epochs": 3}
    simulate(tiny(rounds=5, model={"use": "cnn", "width": 16, "dense": 32}, training=training), out=out)
    return out


def rewritten(run: Path, state: dict[str, torch.Tensor]) -> None:
    """Give a run's folder other tensors, as if it had ended with these."""
    import hashlib

    save_file(state, run / "model.safetensors")
    table = json.loads((run / "model.json").read_text())
    table["sha256"] = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    (run / "model.json").write_text(json.dumps(table))


def predicted(run: Path) -> Any:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    return fedvision.load(run, device="cpu").predict(images).probabilities


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_channels_without_effect_go_and_nothing_changes(case: str, tmp_path: Path) -> None:
    """In each layer every second channel is silenced, and so are the weights that read it."""
    out = tmp_path / "run"
    simulate(tiny(rounds=1, model=CASES[case]), out=out)
    state = load_file(out / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if tensor.is_floating_point() and "running" not in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
    for name, tensor in state.items():
        if name.startswith("head."):
            if tensor.dim() == 2:
                tensor[:, 1::2] = 0
        elif tensor.dim() >= 1 and "running" not in name:
            tensor[1::2] = 0
            if tensor.dim() == 4 and tensor.shape[1] > 1:
                tensor[:, 1::2] = 0
            elif tensor.dim() == 2:  # after flattening: all places of a channel
                places = tensor.shape[1] // state["backbone.features.conv3.weight"].shape[0]
                tensor.view(len(tensor), -1, places)[:, 1::2] = 0
    rewritten(out, state)
    made = pruning.prune(out, 0.5, tmp_path / "pruned")
    assert made.model.args["width"] == 4
    assert np.allclose(predicted(tmp_path / "pruned"), predicted(out), atol=1e-6)
    before, after = made.parameters
    assert after < 0.35 * before
    assert after == sum(p.numel() for p in fedvision.load(tmp_path / "pruned").network.parameters())


def test_the_smallest_channels_go(run: Path, tmp_path: Path) -> None:
    state = load_file(run / "model.safetensors")
    loud = torch.tensor([1, 2, 5, 7, 8, 11, 12, 15])
    state["backbone.features.conv1.weight"][loud] *= 100
    out = tmp_path / "run"
    out.mkdir()
    for name in ("model.json", "config.toml", "invocation.json"):
        (out / name).write_bytes((run / name).read_bytes())
    rewritten(out, state)
    pruning.prune(out, 0.5, tmp_path / "pruned")
    kept = load_file(tmp_path / "pruned/model.safetensors")["backbone.features.conv1.weight"]
    assert torch.equal(kept, state["backbone.features.conv1.weight"][loud])


@pytest.mark.slow
def test_a_pruned_network_is_fine_tuned_by_its_federation(run: Path, tmp_path: Path) -> None:
    made = pruning.prune(run, 0.5, tmp_path / "pruned", rounds=4)
    config = ExperimentConfig.load(tmp_path / "pruned" / pruning.EXPERIMENT)
    assert (config.name, config.rounds, config.model.args["dense"]) == ("tiny-pruned", 4, 16)
    assert made.rounds == 4
    tuned = simulate(config, out=tmp_path / "tuned")
    dataset = fedvision.registry.build("data", config.data)
    scores = [
        fedvision.load(path, device="cpu").evaluate(dataset).scores["balanced_accuracy"]
        for path in (tmp_path / "pruned", tmp_path / "tuned", run)
    ]
    assert scores[1] > scores[0] + 0.1
    assert tuned.scores["balanced_accuracy"] == pytest.approx(scores[1])
    described = json.loads((tmp_path / "tuned/model.json").read_text())
    assert described["weights_sha256"] == json.loads((tmp_path / "pruned/model.json").read_text())["sha256"]


def test_the_command_says_what_to_do_next(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(run), "--keep", "0.5", "--out", str(tmp_path / "small")]) == 0
    said = capsys.readouterr().out
    assert f"fedvision simulate {tmp_path}/small/fine-tune.toml --out {tmp_path}/small-tuned" in said
    assert "numbers are left; fine-tune them for 1 round" in said


def test_what_cannot_be_pruned_is_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    for keep in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"--keep must be > 0 and < 1"):
            pruning.prune(run, keep, new)
    with pytest.raises(ConfigError, match="leaves all channels; name a smaller share"):
        pruning.prune(run, 0.97, new)
    with pytest.raises(ConfigError, match=r"--rounds must be >= 1, not 0"):
        pruning.prune(run, 0.5, new, rounds=0)
    with pytest.raises(RunFolderError, match="it is there already"):
        pruning.prune(run, 0.5, run)
    with pytest.raises(RunFolderError, match=r"model\.json: there is no such file"):
        pruning.prune(tmp_path, 0.5, new)
    simulate(tiny(rounds=1, model={"use": "rnn", "hidden": 8}), out=tmp_path / "rnn")
    with pytest.raises(ConfigError, match="use = 'rnn' cannot be pruned: only networks of convolutions"):
        pruning.prune(tmp_path / "rnn", 0.5, new)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedvision\[prune\]'"):
        pruning.prune(run, 0.5, new)
    assert not new.exists()
