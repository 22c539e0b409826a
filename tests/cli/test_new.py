"""The file that ``fedvision new`` writes: it runs as it is, and its comments are the defaults."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvision import registry
from fedvision.cli import main
from fedvision.cli.new import toml, toml_key, write_experiment
from fedvision.cli.reference import plugin_arguments
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError

pytestmark = pytest.mark.usefixtures("here")


def test_the_file_runs_and_is_not_written_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--set", "rounds=1", "--set", "model.width=2", "--set", "model.dense=4"]
    assert main.main(["new", "mine", *options]) == 0
    assert "fedvision simulate mine.toml runs it" in capsys.readouterr().out
    before = (here / "mine.toml").read_bytes()
    assert main.main(["new", "mine.toml"]) == 2
    assert "mine.toml: the file is there already" in capsys.readouterr().err
    assert (here / "mine.toml").read_bytes() == before
    assert main.main(["simulate", "mine.toml", "--engine", "serial"]) == 0
    assert (here / "runs/mine/report.html").exists()


def uncommented(text: str) -> str:
    """Return a file in which all defaults are set."""
    return re.sub(r"^#(?=\S)", "", text, flags=re.MULTILINE)


def _sources() -> list[str]:
    """Return the sources that need no key."""
    return [
        use
        for use in registry.BUILTINS["data"]
        if not any(one.required for one in plugin_arguments("data", use))
    ]


@pytest.mark.parametrize("source", _sources())
def test_commented_keys_are_the_defaults(source: str) -> None:
    text = write_experiment(Path("mine.toml"), source)
    config, full = (ExperimentConfig.from_toml(page) for page in (text, uncommented(text)))
    plain = {"name": "mine", "data": {"use": source}, "partition": {"clients": 10}}
    default = ExperimentConfig.from_dict(plain)
    assert {**config.to_dict(), "data": default.to_dict()["data"]} == default.to_dict()
    assert config.data.args in ({}, {"download": True})
    registry.check("data", full.data)
    for key in ("partition", "model", "loss", "strategy"):
        assert full.to_dict()[key].items() >= default.to_dict()[key].items()
    for key in ("transforms", "training", "evaluation", "round", "clock", "privacy"):
        assert full.to_dict()[key] == default.to_dict()[key]


def test_a_source_that_needs_keys_says_so() -> None:
    with pytest.raises(ConfigError, match=r"'coco': the key 'path' is missing; add path = "):
        write_experiment(Path("mine.toml"), "coco")
    text = write_experiment(Path("mine.toml"), "coco", ["data.path=boxes.json", "data.size=64"])
    assert ExperimentConfig.from_toml(text).data.args == {"path": "boxes.json", "size": 64}


def test_every_key_stands_in_the_file_with_what_it_does() -> None:
    text = write_experiment(Path("mine.toml"), "digits")
    config = ExperimentConfig.from_toml(text).to_dict()
    for table, keys in config.items():
        names = keys if isinstance(keys, dict) else [table]
        for name in names:
            found = re.search(rf"^# .*\n#?{name} = ", text, flags=re.MULTILINE)
            assert found or f"\n[{table}.{name}]\n" in text, (table, name)
    assert re.search(r"^\[model\.lora\]\n\n# r: .*(\n# .*)*\n#rank = 8$", text, flags=re.MULTILINE)
    assert "# Share of each client's images kept from training for a measurement" in text
    assert max(map(len, text.splitlines()[5:])) <= 100


def test_own_settings_stand_as_they_were_given() -> None:
    changes = ["partition.use=dirichlet", "partition.alpha=0.1", "loss=focal", "training.schedule.use=step"]
    changes += ["training.schedule.every=3", "transforms.mean=[0.1, 0.2, 0.3]", "strategy.use=a:b"]
    with pytest.raises(ConfigError, match="no module 'a'"):
        write_experiment(Path("mine.toml"), "digits", changes)
    text = write_experiment(Path("mine.toml"), "digits", changes[:-1])
    config = ExperimentConfig.from_toml(text)
    assert (config.partition.use, config.partition.args) == ("dirichlet", {"alpha": 0.1})
    assert config.loss.use == "focal"
    assert "\n#gamma = 2.0\n" in text
    assert config.training.schedule.args == {"every": 3}
    assert "\nmean = [0.1, 0.2, 0.3]\n" in text


def test_a_folder_and_files_are_taken_for_what_they_are(here: Path) -> None:
    images = here / "photos/train"
    for number in range(24):
        place = images / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(place)
    np.savez(here / "own.npz", train_images=np.zeros((30, 8, 8), np.uint8), train_labels=np.arange(30) % 3)
    (here / "list.csv").write_text("file,label\n")
    found = {}
    for source in ("photos", "own.npz", "list.csv"):
        data = ExperimentConfig.from_toml(write_experiment(Path("mine.toml"), source)).data
        found[source] = (data.use, {**data.args})
    assert found == {
        "photos": ("image-folder", {"path": "photos", "size": 64}),
        "own.npz": ("npz", {"path": "own.npz"}),
        "list.csv": ("manifest", {"path": "list.csv", "size": 64}),
    }
    for source in ("photos", "own.npz"):
        assert main.main(["new", Path(source).stem, "--data", source]) == 0
        assert main.main(["inspect", f"{Path(source).stem}.toml"]) == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["mine", "--data", "digit"], "did you mean 'digits'"),
        (["mine", "--data", "photos/"], "--data photos/: there is no such file or folder"),
        (["mine", "--data", "no/photos"], "--data no/photos: there is no such file or folder"),
        (["mine", "--data", "text.md"], "only folders, .npz and .csv files are read"),
        (["mine", "--data", "npz"], "the key 'path' is missing"),
        (["mine", "--set", "rounds=0"], "rounds"),
        (["mine", "--set", "sweep.seed=[1, 2]"], "sweep"),
        (["", "--data", "digits"], "no name of an experiment"),
        (["a\nb = 1"], "no name of an experiment"),
        (["no/folder/mine"], "no/folder/mine.toml: it cannot be written: No such file or directory"),
        (["x" * 300], "it cannot be written"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_writes_nothing(
    arguments: list[str], problem: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "text.md").write_text("no data")
    assert main.main(["new", *arguments]) == 2
    printed = capsys.readouterr().err
    assert problem in printed
    assert printed.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["text.md"]


def test_values_and_keys_are_written_on_one_line() -> None:
    assert (
        toml({"a b": [1, 2.5, True], "c": {"d": 'x"y'}}) == '{ "a b" = [1, 2.5, true], c = { d = "x\\"y" } }'
    )
    assert (toml([]), toml("é\n"), toml_key("a.b")) == ("[]", '"é\\n"', '"a.b"')


def test_help_names_every_verb_once_under_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--help"])
    printed = capsys.readouterr().out
    listed = [verb for verbs in main.VERBS.values() for verb in verbs]
    parser = main.parser()
    assert sorted(listed) == sorted(parser._subparsers._group_actions[0].choices)  # type: ignore[union-attr]
    for verb in listed:
        assert len(re.findall(rf"^  {verb} +\S", printed, flags=re.MULTILINE)) == 1
    assert "look at:" in printed
    assert "None" not in printed
