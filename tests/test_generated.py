"""A run's generator in use: distances by hand, copies that show, files that are damaged, and the command."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision import simulate
from fedvision.cli import main
from fedvision.data.sources.arrays import npz
from fedvision.errors import ConfigError, DataError, RunFolderError
from fedvision.experiment import Experiment
from fedvision.generated import ImageGenerator, _unseen, leakage, leakage_of_run, nearest
from tests.experiments import tiny

GAN: dict[str, Any] = {"use": "fedgan", "maps": 4, "noise": 4, "warmup": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "run"
    simulate(tiny(rounds=2, strategy=GAN), out=path)
    return path


def test_distances_by_hand() -> None:
    """Two pixels: (0.6, 0.8) is sqrt(1 / 2) from (0, 0), and 0.1 from (0.5, 0.7)."""
    images = torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    others = torch.tensor([[0.0, 0.0], [0.5, 0.7]])
    torch.testing.assert_close(nearest(images, others), torch.tensor([0.1, 0.0]))
    torch.testing.assert_close(nearest(images[:1], others[:1]), torch.tensor([0.5**0.5]))


def test_copies_show_and_fresh_images_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    training, unseen, fresh = (torch.rand(60, 1, 4, 4, generator=generator) for _ in range(3))
    copied = leakage("copies", training[:30], training, unseen)
    assert (copied.generated, copied.ratio, copied.nearer) == (0.0, 0.0, 1.0)
    honest = leakage("fresh", fresh, training, unseen)
    assert 0.9 < honest.ratio < 1.1
    assert 0.3 < honest.nearer < 0.7
    half = leakage("half", torch.cat([training[:30], fresh[:30]]), training, unseen)
    assert half.nearer > 0.7


def test_ties_count_half_and_nothing_is_divided_by_zero() -> None:
    one, other = torch.zeros(2, 4), torch.ones(1, 4)
    assert leakage("same", one, one, one).nearer == 0.5
    assert math.isnan(leakage("same", one, one, one).ratio)
    assert leakage("far", other, one, one).ratio == math.inf
    with pytest.raises(DataError, match="mine: there are no held-out images"):
        leakage("mine", one, one, one[:0])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**16))
def test_the_share_is_that_of_all_pairs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    made, training, unseen = (torch.randint(0, 3, (5, 2), generator=generator).float() for _ in range(3))
    found = leakage("any", made, training, unseen)
    pairs = [(g, h) for g in nearest(made, training).tolist() for h in nearest(unseen, training).tolist()]
    assert found.nearer == pytest.approx(sum((g < h) + 0.5 * (g == h) for g, h in pairs) / len(pairs))


def test_a_finished_run_has_its_generator(finished: Path) -> None:
    generator = ImageGenerator(finished)
    assert generator.classes == tuple(map(str, range(10)))
    images, labels = generator.images(3, seed=1)
    assert (images.shape, images.dtype) == ((30, 8, 8, 1), np.uint8)
    assert labels.tolist() == sorted(list(range(10)) * 3)
    assert np.array_equal(images, ImageGenerator(finished).images(3, seed=1)[0])
    assert not np.array_equal(images, generator.images(3, seed=2)[0])
    with pytest.raises(ConfigError, match="must be >= 1, not 0"):
        generator.images(0)


def test_a_run_is_measured_on_what_its_clients_trained_on(finished: Path) -> None:
    found = leakage_of_run(finished, each=20)
    totals = Experiment.build(tiny()).split.distinct.tolist()
    assert [one.training for one in found] == [count for count in totals if count]
    assert all(one.generated > 0 and one.held_out > 0 and 0 <= one.nearer <= 1 for one in found)


def test_other_images_than_the_runs_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = {"train_images": rng.integers(0, 256, (60, 8, 8, 1), np.uint8), "train_labels": np.arange(60) % 3}
    np.savez(tmp_path / "own.npz", **made, test_images=made["train_images"], test_labels=made["train_labels"])
    data = {"use": "npz", "path": str(tmp_path / "own.npz")}
    partition = {"use": "iid", "clients": 2}
    simulate(tiny(rounds=1, strategy=GAN, data=data, partition=partition), out=tmp_path / "run")
    found = leakage_of_run(tmp_path / "run", each=3)
    assert [(one.training, one.held_out, one.nearer) for one in found] == [(20, 0.0, 0.0)] * 3
    made["train_images"] = 255 - made["train_images"]
    np.savez(tmp_path / "own.npz", **made, test_images=made["train_images"], test_labels=made["train_labels"])
    with pytest.raises(RunFolderError, match="its images or their split are others now"):
        leakage_of_run(tmp_path / "run")


def test_a_runs_own_plug_ins_are_found_where_it_found_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_loss_of_a_generator.py").write_text(
        "from torch.nn import functional as F\n\n\ndef plain(counts):\n"
        "    return lambda logits, labels: F.cross_entropy(logits, labels, reduction='none')\n"
    )
    (tmp_path / "own.toml").write_text(
        tiny(rounds=1, strategy=GAN, loss={"use": "own_loss_of_a_generator:plain"}).to_toml()
    )
    monkeypatch.chdir(tmp_path)
    assert main.main(["simulate", "own.toml", "--out", "run"]) == 0
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert main.main(["generate", str(tmp_path / "run"), "--leakage", "--each", "3"]) == 0


def test_runs_without_a_generator_and_damaged_files_are_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"generator\.safetensors: there is no such file"):
        ImageGenerator(tmp_path)
    whole = (finished / "generator.safetensors").read_bytes()
    (tmp_path / "generator.safetensors").write_bytes(whole[:-100])
    with pytest.raises(RunFolderError, match="it is damaged"):
        ImageGenerator(tmp_path)
    (tmp_path / "generator.safetensors").write_bytes(whole.replace(b'noise\\": 4.0', b'noise\\": 5.0'))
    with pytest.raises(RunFolderError, match="its tensors are of another network"):
        ImageGenerator(tmp_path)


def test_images_that_clients_held_out_take_the_place_of_test_images() -> None:
    images, labels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.arange(6)
    data: Any = SimpleNamespace(test=None, train=SimpleNamespace(images=images, labels=labels))
    split: Any = SimpleNamespace(held=[np.array([4, 1]), np.array([1])])
    unseen = _unseen(data, split, Path("run"))
    assert [one.ravel().tolist() for one in unseen] == [[1, 4], [1, 4]]
    split.held = []
    with pytest.raises(ConfigError, match="run: it kept no images out of training"):
        _unseen(data, split, Path("run"))


def test_a_deployed_runs_images_are_elsewhere(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "generator.safetensors").write_bytes((finished / "generator.safetensors").read_bytes())
    (tmp_path / "deployment.json").write_text("{}")
    with pytest.raises(ConfigError, match="its images are on the clients' machines"):
        leakage_of_run(tmp_path)


def test_the_command_writes_images_and_prints_distances(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", str(finished), "--each", "5", "--out", "made.npz", "--leakage"]
    assert main.main(arguments) == 0
    made = npz(path="made.npz").train
    assert made.images.shape == (50, 8, 8, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "made.npz: 50 images"
    assert lines[1].split() == ["class", "trained", "on", "generated", "held-out", "ratio", "nearer"]
    rows = {row[0]: row[1:] for row in map(str.split, lines[2:-2])}
    found = {one.name: one for one in leakage_of_run(finished, each=5)}
    assert rows.keys() == found.keys()
    assert all(row[3] == f"{found[name].ratio:.2f}" for name, row in rows.items())
    for wrong in (["generate", str(finished)], ["generate", str(finished), "--each", "0", "--leakage"]):
        assert main.main(wrong) == 2
    assert "there is nothing to do" in capsys.readouterr().err
