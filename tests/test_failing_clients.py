"""What goes wrong with clients and data, end to end: errors name it, and the run goes on where it can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedvision import registry, simulate
from fedvision.errors import RunError
from tests.experiments import tiny

PLUGINS = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

def moody(counts, *, bad: int = 0, value: float = float("nan")):
    '''Cross-entropy that fails or explodes on the client with the most images of one class.'''
    def loss(logits, labels):
        if counts[bad] == 0:
            raise RuntimeError("no images of that class")
        return F.cross_entropy(logits, labels, reduction="none")
    return loss

def hopeless(counts):
    def loss(logits, labels):
        if logits.requires_grad:  # the trial before the first round asks for no gradient
            raise RuntimeError("always")
        return logits.sum(1)
    return loss

def vacant():
    '''Four classes of which the last has no image.'''
    from fedvision.data.dataset import Dataset, ImageSet

    labels = np.arange(30) % 3
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1)).astype(np.uint8)
    whole = ImageSet(images=images, labels=labels)
    return Dataset(train=whole, test=whole, classes=("a", "b", "c", "none"), notices=("1 file was odd",))

def lonely():
    '''The first client has a single image.'''
    def partition(labels, clients, rng):
        return [np.array([0]), *np.array_split(np.arange(1, len(labels)), clients - 1)]
    return partition

def exploding(counts):
    def loss(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none") * float("nan")
    return loss
"""


@pytest.fixture
def plugins(tmp_path: Path) -> str:
    (tmp_path / "plugins_of_a_test.py").write_text(PLUGINS)
    registry.allow_folder(tmp_path)
    return "plugins_of_a_test"


def test_a_round_goes_on_without_the_clients_that_fail(plugins: str, tmp_path: Path) -> None:
    partition = {"use": "shards", "clients": 5, "classes_per_client": 4}
    config = tiny(loss={"use": f"{plugins}:moody", "bad": 0}, partition=partition)
    result = simulate(config, out=tmp_path / "run")
    record = result.rounds[0]
    assert record["clients"]
    assert record["refused"]
    assert record["refused"][0]["stage"] == "training"
    assert "RuntimeError: no images of that class" in record["refused"][0]["reason"]
    assert "plugins_of_a_test.py" in record["refused"][0]["reason"]
    assert sorted(record["clients"] + [item["client"] for item in record["refused"]]) == list(range(5))


def test_updates_that_are_no_numbers_are_refused_by_name(plugins: str, tmp_path: Path) -> None:
    config = tiny(loss={"use": f"{plugins}:exploding"})
    with pytest.raises(RunError, match=r"no client succeeded in 3 rounds in a row.*holds NaN or infinity"):
        simulate(config, out=tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed"
    assert "NaN" in summary["error"]


def test_a_federation_in_which_all_fail_ends_with_the_cause(plugins: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no client succeeded.*RuntimeError: always"):
        simulate(tiny(loss={"use": f"{plugins}:hopeless"}), out=tmp_path / "run")


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("loss", ["logit-adjusted", "ldam", "weighted", "fedlc"])
def test_notice_on_a_vacant_class_and_a_single_image(
    norm: str, loss: str, plugins: str, tmp_path: Path
) -> None:
    config = tiny(
        rounds=2,
        data={"use": f"{plugins}:vacant"},
        partition={"use": f"{plugins}:lonely", "clients": 3},
        model={"use": "resnet8", "norm": norm, "width": 4},
        loss={"use": loss, "prior": "global" if norm == "batch" else "local"},
        training={"lr": 0.01},
        evaluation={"holdout": 0.3},
    )
    result = simulate(config, out=tmp_path / "run")
    assert result.rounds[-1]["clients"] == [0, 1, 2]
    assert "0" not in result.rounds[-1]["local"]["accuracy"]
    notices = json.loads((tmp_path / "run/summary.json").read_text())["notices"]
    assert notices[0] == "1 file was odd"
    text = "\n".join(notices)
    assert "there are no test images of none" in text
    assert "no client trains on images of none" in text
    assert "with a single image each to train on: client 0" in text
