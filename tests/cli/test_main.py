"""The command line as a person meets it: what it prints, its exit codes, and a tour of wrong inputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvision import registry, stages
from fedvision.cli import main

EXPERIMENT = """
name = "small"
rounds = 2
[data]
use = "digits"
[partition]
use = "dirichlet"
clients = 4
alpha = 0.5
[model]
use = "cnn"
width = 4
dense = 8
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with one good experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(EXPERIMENT)
    return tmp_path


def run(*arguments: str) -> int:
    return main.main(arguments)


BEGUN = re.compile(r"fedvision \d|[ \d]{3}\.\d s  ")
"""How the lines begin that tell what a command is busy with."""


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line about what is wrong; before it may stand what was begun."""
    *begun, error = capsys.readouterr().err.splitlines()
    assert [line for line in begun if not BEGUN.match(line)] == []
    assert error.startswith("fedvision: ")
    return error


def test_simulate_prints_a_table_and_names_the_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("simulate", "small.toml") == 0
    out = capsys.readouterr().out
    assert "balanced accuracy" in out
    assert "runs/small/report.html" in out
    assert (here / "runs/small/report.html").exists()


def test_a_second_run_takes_the_next_free_folder(here: Path) -> None:
    assert run("simulate", "small.toml") == 0
    assert run("simulate", "small.toml", "--set", "rounds=1") == 0
    assert {path.name for path in (here / "runs").iterdir()} == {"small", "small-2"}


@pytest.mark.slow
def test_a_sweep_runs_all_and_compares(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "sweep.toml").write_text(EXPERIMENT + '[sweep]\nloss = ["cross-entropy", "focal"]\n')
    assert run("simulate", "sweep.toml", "--out", "out", "--jobs", "1") == 0
    printed = capsys.readouterr().out
    assert "cross-entropy" in printed
    assert "focal" in printed
    assert {"cross-entropy", "focal", "comparison.html"} <= {path.name for path in (here / "out").iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "small.toml", "--out", "a"],
        ["inspect", "small.toml"],
        ["server", "small.toml", "--insecure", "--clients", "."],
    ],
)
def test_what_is_begun_is_said_before_anything_large_is_imported(here: Path, arguments: list[str]) -> None:
    """Imports of torch and Flower fail here; what stands on standard error before that came first."""
    script = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'flwr', 'ray', 'sklearn'))\n"
        f"from fedvision.cli.main import main; main({arguments})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in done.stderr
    assert re.match(r"fedvision \S+: small.toml, 2 rounds\n +\d+\.\d s  loading .*\n", done.stderr)


def test_help_loads_nothing_large() -> None:
    script = (
        "import sys, atexit; from fedvision.cli.main import main\n"
        "large = {'torch', 'flwr', 'ray', 'numpy', 'rich', 'pandas', 'importlib.metadata'}\n"
        "atexit.register(lambda: print(sorted(large & set(sys.modules)), file=sys.stderr))\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "fedvision VERB --help" in done.stdout
    assert done.stderr == "[]\n"


@pytest.mark.slow
def test_report_makes_and_compares(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("simulate", "small.toml", "--out", "a", "--set", "seed=1") == 0
    assert run("simulate", "small.toml", "--out", "b", "--set", "seed=2") == 0
    (here / "a/report.html").unlink()
    assert run("report", "a") == 0
    assert (here / "a/report.html").exists()
    capsys.readouterr()
    assert run("report", "a", "b", "--out", "both.html") == 0
    assert "n" in capsys.readouterr().out
    assert (here / "both.html").exists()


def test_inspect_shows_the_split_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "small.toml") == 0
    out = capsys.readouterr().out
    assert "effective" in out
    assert "each way" in out
    stages.stage("of somebody who uses the package after the command")
    assert "somebody" not in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["small.toml"]


def test_list_names_every_option_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "loss") == 0
    out = capsys.readouterr().out
    assert "logit-adjusted" in out
    assert "fedavg" not in out
    assert run("list") == 0
    assert "fedavg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "kind"), [("algorithm", "strategy"), ("loss", "loss"), ("sampler", "sampler")]
)
def test_list_prints_the_paper_of_each_method(
    word: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("list", word) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines.keys() == registry.BUILTINS[kind].keys()
    for name, builtin in registry.BUILTINS[kind].items():
        assert builtin.paper
        assert f"  {builtin.paper}  " in lines[name]


def corrupt_folder(here: Path) -> None:
    for name in ("cat", "dog"):
        (here / "images/train" / name).mkdir(parents=True)
        for number in range(5):
            (here / "images/train" / name / f"{number}.png").write_bytes(b"no image at all")


def other_run(here: Path) -> None:
    assert main.main(["simulate", "small.toml", "--out", "taken", "--set", "seed=5"]) == 0


def file_in_the_way(here: Path) -> None:
    (here / "file").write_text("")


def wrong_model(here: Path) -> None:
    (here / "my_models.py").write_text(
        "from torch import nn\n"
        "def thousand():\n    '''A thousand classes.'''\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1000))\n"
    )


def broken_npz(here: Path) -> None:
    np.savez(here / "data.npz", train_images=np.zeros((4, 8, 8), np.uint8))


TOUR = {
    "unknown key": ((), ["training.epoch=3"], ["small.toml", "training.epoch", "did you mean 'epochs'"]),
    "unknown plug-in": ((), ["loss.use=focall"], ["loss", "did you mean 'focal'"]),
    "unknown plug-in key": ((), ["partition.alfa=1"], ["partition", "'alfa'", "did you mean 'alpha'"]),
    "wrong type": ((), ["training.lr=fast"], ["small.toml", "training.lr must be a number"]),
    "wrong plug-in type": ((), ["partition.alpha=big"], ["partition", "alpha must be float"]),
    "alpha = 0": ((), ["partition.alpha=0.0"], ["partition", "alpha", "> 0"]),
    "more clients than images": ((), ["partition.clients=5000"], ["partition.clients", "5000", "lower it"]),
    "no clients": ((), ["partition.use=iid", "partition.alpha=1"], ["'alpha'"]),
    "missing folder": ((), ["data={use='image-folder', path='nowhere', size=8}"], ["nowhere", "data"]),
    "corrupt": ((corrupt_folder,), ["data={use='image-folder', path='images', size=8}"], ["images", ".png"]),
    "incomplete npz": ((broken_npz,), ["data={use='npz', path='data.npz'}"], ["data.npz", "train_labels"]),
    "missing data set": ((), ["data={use='cifar10', root='none'}"], ["none", "download"]),
    "wrong model": ((wrong_model,), ["model={use='my_models:thousand'}"], ["my_models", "1000", "10"]),
    "unknown module": ((), ["model.use=nowhere:net"], ["nowhere", "beside"]),
    "unknown optimiser": ((), ["training.optimizer=sgdd"], ["optimizer", "sgdd"]),
    "momentum": ((), ["training.optimizer=adamw", "training.momentum=0.9"], ["training.momentum"]),
    "unknown metric": ((), ["evaluation.metrics=['kapa']"], ["kapa", "kappa"]),
    "crop over the image": ((), ["transforms.crop=100"], ["transforms.crop", "100", "8 x 8"]),
    "unknown device": ((), ["training.device=tpu9"], ["training.device", "tpu9"]),
    "channels": ((), ["transforms.mean=[0.1,0.2]"], ["transforms.mean"]),
    "loss key out of range": ((), ["loss={use='focal', gamma=-1.0}"], ["focal", "gamma"]),
    "nobody's home": ((), ["data={use='npz', path='~nobodyhere/x.npz'}"], ["~nobodyhere/x.npz", "write"]),
    "no text": ((), ["data={use='npz', path='caf\udce9'}"], ["data.path", "UTF-8"]),
    "a zero": ((), ['data={use="npz", path="a\\u0000b"}'], ["data.path", "UTF-8"]),
    "strategy key out of range": ((), ["strategy={use='fedavg', fraction=0.0}"], ["fedavg", "fraction"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TOUR)
def test_a_wrong_input_ends_in_exit_code_2_and_one_sentence(
    case: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preparations, overrides, expected = TOUR[case]
    for prepare in preparations:
        prepare(here)
    before = sorted(here.rglob("*"))
    arguments = [argument for text in overrides for argument in ("--set", text)]
    assert run("simulate", "small.toml", "--out", "out", *arguments) == 2
    error = sentence(capsys)
    for fragment in ["small.toml", *expected]:
        assert fragment in error
    after = [path for path in sorted(here.rglob("*")) if "__pycache__" not in str(path)]
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "arguments", "expected"),
    [
        (other_run, ["simulate", "small.toml", "--out", "taken"], ["taken", "--resume", "--out"]),
        (other_run, ["simulate", "small.toml", "--out", "taken", "--resume"], ["taken", "seed", "5", "0"]),
        (file_in_the_way, ["simulate", "small.toml", "--out", "file/run"], ["file/run", "--out"]),
        (None, ["simulate", "none.toml"], ["none.toml", "no such file"]),
        (None, ["report", "none"], ["none"]),
    ],
)
def test_wrong_folders_and_files(
    prepare: object, arguments: list[str], expected: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if callable(prepare):
        prepare(here)
    capsys.readouterr()
    assert run(*arguments) == 2
    error = sentence(capsys)
    assert all(fragment in error for fragment in expected)


def test_an_experiment_that_is_no_toml(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "broken.toml").write_text("rounds = [1,\n")
    assert run("simulate", "broken.toml") == 2
    assert "broken.toml: this is no TOML" in capsys.readouterr().err


def test_files_of_other_editors(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A byte-order mark and carriage returns are taken; UTF-16 is named as what it is."""
    (here / "marked.toml").write_bytes(b"\xef\xbb\xbf" + EXPERIMENT.replace("\n", "\r\n").encode())
    assert run("inspect", "marked.toml") == 0
    (here / "wide.toml").write_bytes(EXPERIMENT.encode("utf-16"))
    capsys.readouterr()
    assert run("inspect", "wide.toml") == 2
    assert capsys.readouterr().err == "fedvision: wide.toml: this text is in UTF-16; save it as UTF-8\n"


def test_a_class_folder_whose_name_is_no_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name, images in {
        b"caf\xe9": 4,
        b"tea": 6,
    }.items():  # The table names a class only where one is rarer.
        for part in (b"train", b"test"):
            folder = os.fsencode(here) + b"/images/" + part + b"/" + name
            os.makedirs(folder)
            for number in range(images):
                with open(folder + b"/%d.png" % number, "wb") as file:
                    Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(file, "PNG")
    data = "data={use='image-folder', path='images', size=8}"
    assert run("simulate", "small.toml", "--out", "out", "--set", data, "--set", "rounds=1") == 0
    assert "caf\\xe9 " in capsys.readouterr().out
    assert json.loads((here / "out/split.json").read_text())["classes"] == ["caf\\xe9", "tea"]
    assert "caf\\xe9" in (here / "out/report.html").read_text()


@pytest.mark.long
def test_a_terminal_that_lacks_letters(here: Path) -> None:
    """The table's own signs are written in ASCII, other letters as escapes; the run goes through."""
    arguments = ["small.toml", "--engine", "serial", "--set", "rounds=1", "--set", "name=Größe 図"]
    done = subprocess.run(
        [sys.executable, "-m", "fedvision.cli.main", "simulate", *arguments],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    lines = done.stdout.decode("latin-1").splitlines()
    assert (done.returncode, lines[0]) == (0, "Größe \\u56f3: finished, 1 of 1 round, 4 clients")
    assert lines[4].strip("-") == ""


def test_usage_errors_end_in_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["report"], ["list", "birds"]):
        with pytest.raises(SystemExit) as caught:
            run(*arguments)
        assert caught.value.code == 2


@pytest.mark.parametrize("verb", ["simulate", "inspect"])
def test_missing_experiment_names_a_command_to_try(
    verb: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "below").mkdir()
    (here / "below/other.toml").write_text(EXPERIMENT)
    (here / "site.toml").write_text("[project]\n")
    (here / "client.toml").write_text('data = "digits"\n[superlink]\naddress = "a:1"\n')
    (here / "broken.toml").write_text("[")
    assert run(verb) == 2
    assert "TOML file; here are small.toml, below/other.toml, and" in capsys.readouterr().err
    (here / "small.toml").unlink()
    (here / "below/other.toml").unlink()
    assert run(verb) == 2
    assert "`fedvision new NAME` writes one" in capsys.readouterr().err


def test_no_permission_to_write(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Not even root may make a folder in /sys.
    assert run("simulate", "small.toml", "--out", "/sys/run") == 2
    assert "/sys/run" in capsys.readouterr().err


def test_the_command_is_installed_and_frozen() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedvision.cli.main", "--help"], capture_output=True, text=True, check=True
    )
    assert "{simulate,report,inspect,list}" in done.stdout or "VERB" in done.stdout
    options = {
        action.dest
        for verb in main.parser()._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
        for action in verb._actions
    }
    assert options == {
        "help", "experiment", "overrides", "engine", "workers", "address", "gpus_per_worker", "stack",
        "inner", "out", "resume", "jobs", "threads", "tensorboard", "runs", "kind",
        "folder", "host", "clients", "days", "mutual_tls", "kit", "client", "client_overrides", "trains",
        "wait_for", "tls", "private", "public", "state", "insecure", "client_certificates", "keep",
        "superlink", "name", "source", "run", "images", "csv", "jsonl", "data", "part", "json", "device",
        "sums", "request", "rounds", "mlflow", "others",
        "format", "fit", "quantize", "calibration", "calibration_images",
        "calibration_method", "tolerance",
        "baselines", "license", "tau", "norms", "each", "seed", "leakage",
        "method", "label", "limit",
        "requested", "refuse", "now", "of_client", "noted", "log_format", "action", "queue",
        "watch", "port", "token_file", "score", "draw",
    }  # fmt: skip


def test_python_m_is_the_same_command() -> None:
    """A wrong file is 2 by what ``main`` returns, which the module has to pass on."""
    command = [sys.executable, "-m", "fedvision", "simulate", "absent.toml"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("fedvision: absent.toml: ")


@pytest.mark.parametrize(
    "key",
    [
        "transforms.size=100000000",
        "model.dense=1000000000000000",
        'partition={use="population",clients=1000000000000000,alpha=1.0}',
    ],
)
def test_what_no_memory_holds_is_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert run("simulate", "small.toml", "--set", key) in (1, 2)
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("fedvision: ")]
    assert "allocate" in line


def test_other_errors_of_a_program_keep_their_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object, **named: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("fedvision.sweep_runner.simulate_sweep", broken)
    monkeypatch.setattr("fedvision.api.simulate", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run("simulate", "small.toml")
