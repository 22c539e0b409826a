"""Experiments: TOML in, canonical TOML out, one clear sentence for everything a person can get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError
from fedvision.sweep import load_sweep

MINIMAL = '[data]\nuse = "digits"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.toml"
    path.write_text(text)
    return path


def test_defaults_are_written_out_and_read_back_the_same(tmp_path: Path) -> None:
    config = ExperimentConfig.load(write(tmp_path, MINIMAL))
    text = config.to_toml()
    assert "batch_size = 32" in text
    assert ExperimentConfig.from_toml(text) == config
    assert ExperimentConfig.from_toml(text).to_toml() == text


def test_canonical_text_does_not_depend_on_the_order_of_keys() -> None:
    one = ExperimentConfig.from_toml('rounds = 3\n[data]\nuse = "npz"\npath = "a"\nvalidation = "train"\n')
    two = ExperimentConfig.from_toml('rounds = 3\n[data]\nvalidation = "train"\npath = "a"\nuse = "npz"\n')
    assert one.to_toml() == two.to_toml()


def test_keys_of_a_plugin_are_kept_apart_from_the_tables_own() -> None:
    config = ExperimentConfig.from_toml(
        MINIMAL + '[partition]\nuse = "dirichlet"\nclients = 5\nalpha = 0.1\n'
    )
    assert config.partition.clients == 5
    assert config.partition.args == {"alpha": 0.1}


def test_a_plugin_without_keys_may_be_a_text() -> None:
    config = ExperimentConfig.from_toml('data = "digits"\n[training]\noptimizer = "adamw"\n')
    assert (config.data.use, config.training.optimizer.use) == ("digits", "adamw")


def test_whole_numbers_serve_as_numbers() -> None:
    config = ExperimentConfig.from_toml(MINIMAL + "[training]\nlr = 1\n")
    assert isinstance(config.training.lr, float)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "data is missing; add it"),
        (MINIMAL + "[training]\nlearning_rat = 1\n", "training.learning_rat: there is no such key"),
        (MINIMAL + "[training]\nepoch = 1\n", "training.epoch: there is no such key; did you mean 'epochs'?"),
        (MINIMAL + '[training]\nlr = "fast"\n', "training.lr must be a number, not 'fast'"),
        (MINIMAL + "[training]\nepochs = 1.5\n", "training.epochs must be a whole number, not 1.5"),
        (MINIMAL + "[training]\nepochs = true\n", "training.epochs must be a whole number, not True"),
        (MINIMAL + "[training]\nlr = 0\n", "training.lr must be > 0, not 0.0"),
        (
            MINIMAL + '[loss]\nprior = "both"\n',
            "loss.prior must be one of 'local', 'global', 'mixed', not 'both'",
        ),
        (MINIMAL + "[partition]\nimbalance = 0.5\n", "partition.imbalance must be >= 1, not 0.5"),
        (MINIMAL + "[evaluation]\nfraction = 0\n", "evaluation.fraction must be > 0 and <= 1, not 0"),
        (MINIMAL + "[evaluation]\nholdout = 1\n", "evaluation.holdout must be >= 0 and < 1, not 1.0"),
        (MINIMAL + "[training]\nlr = inf\n", "training.lr must be a finite number, not inf"),
        (
            MINIMAL + "[training]\nweight_decay = nan\n",
            "training.weight_decay must be a finite number, not nan",
        ),
        (MINIMAL + "[training]\nclip_norm = inf\n", "training.clip_norm must be a finite number, not inf"),
        (
            MINIMAL + "[evaluation]\nwith_training = true\n",
            "evaluation.with_training needs evaluation.holdout > 0",
        ),
        (
            MINIMAL + "[evaluation]\nholdout = 0.2\nfraction = 0.5\nwith_training = true\n",
            "evaluation.with_training needs evaluation.fraction = 1, not 0.5",
        ),
        (
            MINIMAL + "[evaluation]\nholdout = 0.2\nwith_training = true\n[round]\nbuffer = 2\n",
            "evaluation.with_training needs round.buffer = 0, not 2",
        ),
        (MINIMAL + "[transforms]\nstd = [0]\n", "transforms.std must hold numbers above 0"),
        ("rounds = 0\n" + MINIMAL, "rounds must be >= 1, not 0"),
        ("training = 3\n" + MINIMAL, "training must be a table, not 3"),
        ("rounds = \n", "this is no TOML"),
    ],
)
def test_a_wrong_file_gets_one_sentence_that_names_file_and_key(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        ExperimentConfig.load(tmp_path / "nothing.toml")


def test_overrides_take_toml_values_and_bare_texts(tmp_path: Path) -> None:
    overrides = ["training.lr=0.5", "loss.use=focal", "loss.gamma=1.0", "evaluation.metrics=['kappa']"]
    config = ExperimentConfig.load(write(tmp_path, MINIMAL), overrides)
    assert (config.training.lr, config.loss.use, config.loss.args) == (0.5, "focal", {"gamma": 1.0})
    assert config.evaluation.metrics == ("kappa",)


def test_an_override_of_a_name_that_stands_alone_makes_it_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'name = "a"\ndata = "digits"\npartition = { use = "iid", clients = 2 }\nmodel = "fusion"\n'
    )
    found = ExperimentConfig.load(
        path, ["data.validation=0.2", "strategy=fedprox", "strategy.mu=0.5", "model.extractor.width=8"]
    )
    assert found.data.use == "digits"
    assert found.data.args["validation"] == 0.2
    assert (found.strategy.use, found.strategy.args) == ("fedprox", {"mu": 0.5})
    assert found.model.use == "fusion"
    with pytest.raises(ConfigError, match=r"rounds\.most: rounds is no table"):
        ExperimentConfig.load(path, ["rounds=2", "rounds.most=3"])


@pytest.mark.parametrize("override", ["training.lr", "=3", "name.lr=3"])
def test_a_wrong_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        ExperimentConfig.load(write(tmp_path, "name = 'x'\n" + MINIMAL), [override])


def test_a_sweep_is_all_combinations_with_labels(tmp_path: Path) -> None:
    text = (
        'name = "tail"\n'
        + MINIMAL
        + '[sweep]\nseed = [1, 2]\nloss = [{use = "focal"}, {use = "ldam", name = "L"}]\n'
    )
    sweep = load_sweep(write(tmp_path, text))
    assert list(sweep.experiments) == ["seed1-focal", "seed1-L", "seed2-focal", "seed2-L"]
    last = sweep.experiments["seed2-L"]
    assert (last.seed, last.loss.use, last.loss.args, last.name) == (2, "ldam", {}, "tail seed2-L")


def test_a_sweep_over_dotted_keys_keeps_the_rest_of_the_table(tmp_path: Path) -> None:
    text = MINIMAL + "[training]\nlr = 0.2\n[sweep]\ntraining.epochs = [1, 5]\n"
    experiments = load_sweep(write(tmp_path, text)).experiments
    assert [(e.training.lr, e.training.epochs) for e in experiments.values()] == [(0.2, 1), (0.2, 5)]


def test_a_sweep_that_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.seed must be a list of values, not 3"):
        load_sweep(write(tmp_path, MINIMAL + "[sweep]\nseed = 3\n"))


def test_an_override_replaces_a_swept_key(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, MINIMAL + "[sweep]\nseed = [1, 2]\n"), ["seed=9"])
    assert [config.seed for config in sweep.experiments.values()] == [9]


def test_one_experiment_cannot_be_read_from_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="read it with load_sweep"):
        ExperimentConfig.load(write(tmp_path, MINIMAL + "[sweep]\nseed = [1, 2]\n"))


def test_twins_in_a_sweep_are_refused(tmp_path: Path) -> None:
    text = MINIMAL + '[sweep]\nloss = [{use = "focal", gamma = 1.0}, {use = "focal", gamma = 2.0}]\n'
    with pytest.raises(ConfigError, match="give their tables a name"):
        load_sweep(write(tmp_path, text))


SWEPT = """
[loss]
use = "focal"
gamma = 1.0
[sweep]
seed = [1, 2]
loss = [{use = "focal", gamma = 3.0}, "ldam"]
training.lr = [0.1, 0.2]
"model.width" = [4, 8]
"""


def test_an_override_takes_the_place_of_a_swept_key(tmp_path: Path) -> None:
    given = ["seed=9", "loss=cross-entropy", "training.lr=0.5", "model.width=6"]
    sweep = load_sweep(write(tmp_path, MINIMAL + SWEPT), given)
    (config,) = sweep.experiments.values()
    assert (config.seed, config.loss.use, config.training.lr, config.model.args["width"]) == (
        9, "cross-entropy", 0.5, 6
    )  # fmt: skip
    assert sweep.notices == tuple(
        f"--set {key} takes the place of the values in sweep.{key}"
        for key in ("seed", "loss", "training.lr", "model.width")
    )


def test_an_override_may_list_other_values(tmp_path: Path) -> None:
    given = ["sweep.seed=[7]", "loss=ldam", "sweep.training.lr=[0.3]", "model.width=4"]
    sweep = load_sweep(write(tmp_path, MINIMAL + SWEPT), given)
    assert list(sweep.experiments) == ["seed7-lr0.3"]


@pytest.mark.parametrize(
    ("given", "fragments"),
    [
        (["loss.use=focal"], ["--set loss.use", "sweep.loss"]),
        (["loss.gamma=2.0"], ["--set loss.gamma", "sweep.loss"]),
        (["training={lr=0.5, epochs=2}"], ["--set training", "sweep.training.lr"]),
        (["model={use='cnn', width=5}"], ["--set model", "sweep.model.width"]),
        (["sweep=3"], ["sweep must be a table"]),
        (["sweep.model.width=[4]"], ["sweep.model.width is there twice"]),
        (["sweep.loss=[1]", "sweep.loss.gamma=[1.0]"], ["loss", "no table"]),
        (["training.epochs=2", "training={batch_size=8}"], ["replaces training.epochs", "first"]),
    ],
)
def test_entries_of_which_one_would_be_lost_are_refused(
    given: list[str], fragments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tmp_path, MINIMAL + SWEPT), given)
    assert all(fragment in str(caught.value) for fragment in fragments), caught.value


def test_a_table_without_the_swept_key_serves_as_its_base(tmp_path: Path) -> None:
    given = ["training={epochs=2}", "seed=1", "loss=ldam", "model.width=4"]
    sweep = load_sweep(write(tmp_path, MINIMAL + SWEPT), given)
    assert [(c.training.epochs, c.training.lr) for c in sweep.experiments.values()] == [(2, 0.1), (2, 0.2)]


def test_swept_keys_that_lie_in_each_other_are_refused(tmp_path: Path) -> None:
    text = MINIMAL + '[sweep]\n"loss.gamma" = [1.0]\nloss = ["focal"]\n'
    with pytest.raises(ConfigError, match=r"sweep\.loss\.gamma lies in sweep\.loss"):
        load_sweep(write(tmp_path, text))


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("transforms.mean = [125.3]", ["transforms.mean", "from 0 to 1", "divide by 255"]),
        ("transforms.mean = [0.5, -0.1, 0.5]", ["transforms.mean"]),
        ("transforms.size = -1", ["transforms.size"]),
        ('transforms.interpolation = "cubic"', ["transforms.interpolation", "bicubic"]),
        ("transforms.std = 58.4", ["transforms.std", "divide by 255"]),
        ("transforms.std = [0.2, 0.0, 0.2]", ["transforms.std"]),
        ("transforms.rotation = 400.0", ["transforms.rotation", "180"]),
        ("transforms.crop = -1", ["transforms.crop"]),
        ("transforms.mixup = 1e9", ["transforms.mixup"]),
        ("training.momentum = 1.0", ["training.momentum", "< 1"]),
        ("clock.spread = 100.0", ["clock.spread", "10"]),
        ("loss = {use = 'focal', gamma = inf}", ["loss.gamma", "finite"]),
        ("partition = {use = 'mine:split', weights = [1.0, nan]}", ["partition.weights", "finite"]),
        ("strategy = {use = 'flwr.serverapp.strategy:FedAdam', eta = -inf}", ["strategy.eta", "finite"]),
    ],
)
def test_numbers_out_of_their_range(line: str, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig.from_toml(f"{line}\n{MINIMAL}")
    assert all(fragment in str(caught.value) for fragment in fragments), caught.value


@pytest.mark.parametrize("key", ["mean", "std", "rotation", "mixup"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_transforms_that_are_no_numbers(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"transforms\.{key} must be a finite number, not {value}"):
        ExperimentConfig.from_toml(f"transforms.{key} = {value}\n{MINIMAL}")


def test_ranges_include_their_documented_ends() -> None:
    text = "transforms = {mean = [0.0, 1.0], std = [0.001, 1.0], rotation = 180}\ntraining.momentum = 0.99\n"
    assert ExperimentConfig.from_toml(text + MINIMAL).transforms.std == (0.001, 1.0)


def test_a_strategy_table_without_a_name_is_of_the_default() -> None:
    config = ExperimentConfig.from_dict({"data": "digits", "strategy": {"fraction": 0.5}})
    assert (config.strategy.use, config.strategy.args) == ("fedavg", {"fraction": 0.5})


def test_data_have_no_default() -> None:
    with pytest.raises(ConfigError, match=r"data\.use is missing"):
        ExperimentConfig.from_dict({"data": {"path": "x"}})


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["sites/a", "sites/b"], ["sites_a", "sites_b"]),
        (["", "before.safetensors"], ["path", "before.safetensors"]),
        (["..", "."], ["path..", "path."]),
        ([{"use": "npz", "name": "one/two"}], ["one_two"]),
    ],
    ids=str,
)
def test_a_label_is_the_name_of_a_folder_whatever_the_values(
    tmp_path: Path, values: list[Any], labels: list[str]
) -> None:
    key = "data" if isinstance(values[0], dict) else "data.path"
    file = tmp_path / "e.toml"
    file.write_text(tomli_w.dumps({"data": {"use": "npz", "path": "x"}, "sweep": {key: values}}))
    assert list(load_sweep(file).experiments) == labels


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_a_name_that_is_no_folders_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name must be a folder's name"):
        ExperimentConfig.from_dict({"name": name, "data": {"use": "digits"}})
