"""Parts begin with files of their own, in a run, resumed, trained at once and used for predictions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from fedvision import load, simulate
from fedvision.config import ExperimentConfig, ModelConfig
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.models.part_config import parts
from fedvision.models.weights import begin
from fedvision.models.weights_file import read_all
from tests.experiments import tiny
from tests.models.test_parts import LITE, OWN, RESNET, SMALL_RESNET, SMALL_VIT, VIT, build


def saved(network: nn.Module, file: Path, **more: torch.Tensor) -> Path:
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file({**state, **more}, file)
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a torchvision network with its head, under its own names, and networks of ours with theirs."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(7)
    resnet = saved(torchvision.models.resnet18(weights=None, num_classes=7), folder / "resnet.safetensors")
    ours = {
        name: saved(build(size=8, channels=1, seed=5, **table), folder / f"{name}.safetensors")
        for name, table in {"extractor": SMALL_RESNET, "transformer": SMALL_VIT}.items()
    }
    return {"resnet": resnet, **ours}


def test_each_part_begins_with_its_own_file(files: dict[str, Path]) -> None:
    table = {
        "extractor": {"use": RESNET, "weights": str(files["resnet"])},
        "transformer": SMALL_VIT,
        "heads": 2,
    }
    config = ModelConfig(use="fusion", args=table)
    model = build(**table)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = begin(model, read_all(config), list("abc"))
    given = load_file(files["resnet"])
    assert loaded is not None
    assert loaded.files == {"extractor": hashlib.sha256(files["resnet"].read_bytes()).hexdigest()}
    assert loaded.notices == ()
    prefix = "backbone.extractor.network."
    for name, tensor in model.state_dict().items():
        of_part = name.startswith(prefix) and tensor.is_floating_point()
        wanted = given[name.removeprefix(prefix)] if of_part else before[name]
        assert torch.equal(tensor, wanted), name
    # What lies behind the layer is in the file and not in the network.
    cut = build(extractor={"use": RESNET, "layer": "layer2"}, **OWN)
    begin(cut, read_all(dataclasses.replace(config, args={"extractor": table["extractor"]})), list("abc"))
    assert torch.equal(cut.state_dict()[f"{prefix}layer2.1.conv2.weight"], given["layer2.1.conv2.weight"])


def test_a_file_of_another_network_is_refused_by_its_key(files: dict[str, Path]) -> None:
    table = {"extractor": {**SMALL_RESNET, "width": 8, "weights": str(files["extractor"])}}
    model = build(size=8, channels=1, **table, **OWN)
    with pytest.raises(ConfigError, match=r"model\.extractor\.weights = '.*': the tensor 'backbone.*' is \["):
        begin(model, read_all(ModelConfig(use="fusion", args=table)), list("abc"))
    both = ModelConfig(use="fusion", weights="whole.pth", args=table)
    with pytest.raises(ConfigError, match=r"model\.extractor\.weights: model\.weights names weights for all"):
        read_all(both)
    missing = ModelConfig(use="fusion", args={"extractor": {"use": "cnn", "weights": "/no/such"}})
    with pytest.raises(ConfigError, match=r"model\.extractor\.weights = '/no/such': /no/such cannot be read"):
        read_all(missing)


RESCALED = {"scale": [1.5], "shift": [-0.25]}
"""Images as a part takes whose weights were trained with another mean and deviation."""


def experiment(files: dict[str, Path], *, lora: bool = False, **tables: Any) -> ExperimentConfig:
    return tiny(
        rounds=2,
        model={
            "use": "fusion",
            "extractor": {**SMALL_RESNET, **RESCALED, "weights": str(files["extractor"]), "train": "none"},
            "transformer": {
                **SMALL_VIT,
                "weights": str(files["transformer"]),
                "train": "lora" if lora else "last:1",
            },
            "heads": 2,
            "join": "gated",
            "lora": {"rank": 1},
        },
        **tables,
    )


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_run_resumed_or_predicting_has_the_bits_of_the_run(
    lora: bool, files: dict[str, Path], tmp_path: Path
) -> None:
    config = experiment(files, lora=lora)
    whole = simulate(config, engine="serial", out=tmp_path / "whole")
    simulate(dataclasses.replace(config, rounds=1), engine="serial", out=tmp_path / "run")
    grown = simulate(config, engine="serial", out=tmp_path / "run", resume=True)
    assert whole.state.keys() == grown.state.keys()
    assert all(torch.equal(grown.state[name], tensor) for name, tensor in whole.state.items())
    sent = {name for name in whole.state if name.startswith("backbone.extractor.")}
    assert sent == set()
    digests = {
        name: hashlib.sha256(files[name].read_bytes()).hexdigest() for name in ("extractor", "transformer")
    }
    environment = whole.folder.environment()
    description = json.loads((tmp_path / "whole/model.json").read_text())
    for name, sha256 in digests.items():
        assert environment[f"model.{name}.weights, sha256"] == sha256
        assert "weights" not in description["model"][name]
    assert description["part_weights_sha256"] == digests
    frozen = load_file(tmp_path / "whole/model.safetensors")
    given = load_file(files["extractor"])
    for name, tensor in frozen.items():
        if name.startswith("backbone.extractor.network.") and tensor.is_floating_point():
            assert torch.equal(tensor, given[name.replace("backbone.extractor.network.", "backbone.")])
    # The network is built from model.json alone.
    for name in ("model.json", "model.safetensors"):
        (tmp_path / "alone").mkdir(exist_ok=True)
        (tmp_path / "alone" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    dataset = Experiment.build(config).dataset
    assert dataset.test is not None
    assert load(tmp_path / "alone").evaluate(dataset).scores == whole.rounds[-1]["server"]["scores"]


@pytest.mark.slow
@pytest.mark.parametrize("early", [False, True])
def test_clients_trained_at_once_have_the_numbers_of_serial_ones(
    early: bool, files: dict[str, Path], tmp_path: Path
) -> None:
    config = experiment(files)
    if early:
        table = {"extractor": config.model.args["extractor"], "early": "features.stages.0", **OWN}
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, args=table))
    serial = simulate(config, engine="serial", out=tmp_path / "serial")
    stacked = simulate(config, engine="vectorized", out=tmp_path / "vectorized")
    assert not any("one by one" in text for text in stacked.folder.summary()["notices"])
    for name, tensor in serial.state.items():
        torch.testing.assert_close(stacked.state[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_other_files_than_before_are_refused_on_resuming(files: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "extractor.safetensors"
    own.write_bytes(files["extractor"].read_bytes())
    config = experiment({**files, "extractor": own}, name="x")
    simulate(dataclasses.replace(config, rounds=1), engine="serial", out=tmp_path / "run")
    save_file({name: tensor + 1 for name, tensor in load_file(own).items()}, own)
    with pytest.raises(ConfigError, match=r"other tensors of model\.extractor\.weights; restore them"):
        simulate(config, engine="serial", out=tmp_path / "run", resume=True)


def test_parts_that_keep_what_the_seed_drew_are_told(files: dict[str, Path]) -> None:
    config = experiment(files)
    assert not any("freezes numbers" in text for text in Experiment.build(config).notices())
    table = {key: value for key, value in config.model.args["extractor"].items() if key != "weights"}
    bare = dataclasses.replace(config.model, args={**config.model.args, "extractor": table})
    (sentence,) = [
        text
        for text in Experiment.build(dataclasses.replace(config, model=bare)).notices()
        if "freezes" in text
    ]
    assert sentence == (
        "model.extractor.train = 'none' freezes numbers that the seed draws, as model.extractor.weights is "
        "empty"
    )


def test_parts_are_found_by_their_names() -> None:
    table = {"extractor": {"use": "rnn", "reads": {"use": LITE, "weights": "w"}}, "transformer": VIT}
    found = parts(ModelConfig(use="fusion", args=table))
    assert {name: (part.use, part.weights) for name, part in found.items()} == {
        "extractor": ("rnn", ""),
        "extractor.reads": (LITE, "w"),
        "transformer": (VIT, ""),
    }
    assert parts(ModelConfig(use="cnn", args={"extractor": "cnn"})) == {}


@pytest.mark.slow
def test_every_part_says_what_its_images_were_like(tmp_path: Path) -> None:
    """Two runs whose images were normalised differently begin one network; each part sees what it knows."""
    runs = {}
    for name, table, mean in (("extractor", SMALL_RESNET, 0.4), ("transformer", SMALL_VIT, 0.6)):
        config = tiny(rounds=1, model=table, transforms={"mean": [mean], "std": [0.3]})
        runs[name] = simulate(config, engine="serial", out=tmp_path / name).folder.path

    def both(**tables: Any) -> ExperimentConfig:
        model = {
            "use": "fusion",
            "extractor": {**SMALL_RESNET, "weights": str(runs["extractor"])},
            "transformer": {**SMALL_VIT, "weights": str(runs["transformer"])},
            "heads": 2,
        }
        return tiny(model=model, **tables)

    first = simulate(both(rounds=1), engine="serial", out=tmp_path / "first")
    table = Experiment.build(both()).config.model.args["transformer"]
    assert table["scale"] == [1.0]
    assert table["shift"] == pytest.approx([(0.4 - 0.6) / 0.3])
    again = simulate(both(rounds=1), engine="serial", out=tmp_path / "first", resume=True)
    assert again.rounds == first.rounds
    begun = {"use": "fusion", "extractor": SMALL_RESNET, "transformer": SMALL_VIT, "heads": 2}
    later = tiny(
        rounds=1,
        model={**begun, "weights": str(first.folder.path)},
        strategy={"use": "zero-shot"},
    )
    measured = simulate(later, engine="serial", out=tmp_path / "later")
    assert measured.rounds[0]["server"] == first.rounds[0]["server"]
    model = both().model
    one = {key: value for key, value in model.args.items() if key != "transformer"}
    alone = dataclasses.replace(model, args=one)
    built = Experiment.build(dataclasses.replace(both(), model=alone))
    assert (built.config.transforms.mean, built.config.transforms.std) == ((0.4,), (0.3,))
    with pytest.raises(
        ConfigError, match=r"transforms\.mean = \[0.5\]: model\.extractor\.weights = .* with \[0.4"
    ):
        Experiment.build(dataclasses.replace(both(transforms={"mean": [0.5]}), model=alone))


def test_a_file_of_unknown_images_takes_those_of_the_other_and_says_so(
    files: dict[str, Path], tmp_path: Path
) -> None:
    config = tiny(rounds=1, model=SMALL_VIT, transforms={"mean": [0.6], "std": [0.3]})
    run = simulate(config, engine="serial", out=tmp_path / "run").folder.path
    model = {
        "use": "fusion",
        "extractor": {**SMALL_RESNET, "weights": str(files["extractor"])},
        "transformer": {**SMALL_VIT, "weights": str(run)},
        "heads": 2,
    }
    built = Experiment.build(tiny(model=model))
    assert built.config.transforms.mean == (0.6,)
    (sentence,) = [text for text in built.notices() if "nothing tells" in text]
    assert sentence.startswith("model.extractor.weights = ")
    assert "here it is with mean [0.6] and std [0.3]" in sentence
