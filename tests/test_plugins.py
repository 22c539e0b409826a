"""Everything plugs in by path from the user's own folder: data, partition, model, loss, strategy, metric."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedvision import cli
from fedvision.reporting.folder import RunFolder

MODULE = '''
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.data.images import Dataset, ImageSet
from fedvision.strategies.base import RoundStrategy


def stripes(count: int = 90) -> Dataset:
    """Three classes of 8x8 images: stripes across, stripes down, nothing."""
    labels = np.arange(count) % 3
    images = np.zeros((count, 8, 8, 1), np.uint8)
    images[labels == 0, ::2] = 200
    images[labels == 1, :, ::2] = 200
    images += np.random.default_rng(0).integers(0, 30, images.shape).astype(np.uint8)
    whole = ImageSet(images=images, labels=labels)
    return Dataset(train=whole, test=whole, classes=("across", "down", "nothing"))


def halves(share: float = 0.5):
    """The first client gets a share of the images, the others the rest in equal parts."""
    def partition(labels, clients, rng):
        cut = int(share * len(labels))
        return [np.arange(cut), *np.array_split(np.arange(cut, len(labels)), clients - 1)]
    return partition


def linear(*, num_classes: int, in_channels: int, image_size: tuple[int, int], bias: bool = True):
    """Logistic regression."""
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, num_classes, bias=bias))


def smoothed(counts, amount: float = 0.1):
    """Cross-entropy with label smoothing."""
    return lambda logits, labels: F.cross_entropy(logits, labels, reduction="none", label_smoothing=amount)


class Newest(RoundStrategy):
    """The last update wins."""

    def combine(self, state, updates):
        for update in updates:
            state = update.state
        return state


def worst_recall(confusion):
    """Recall of the class that is found least."""
    return float((confusion.diagonal() / confusion.sum(1)).min())
'''

EXPERIMENT = """
name = "own"
rounds = 3
data = { use = "own_parts_of_a_test:stripes", count = 60 }
partition = { use = "own_parts_of_a_test:halves", clients = 3, share = 0.4 }
model = { use = "own_parts_of_a_test:linear", bias = false }
loss = { use = "own_parts_of_a_test:smoothed", amount = 0.2 }
strategy = { use = "own_parts_of_a_test:Newest", fraction = 0.67 }
[training]
epochs = 40
[evaluation]
metrics = ["own_parts_of_a_test:worst_recall"]
"""


def test_a_folder_of_own_parts_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "own_parts_of_a_test.py").write_text(MODULE)
    (folder / "own.toml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert cli.main(["simulate", "mine/own.toml", "--out", "run"]) == 0
    folder_of_run = RunFolder.read(tmp_path / "run")
    last = folder_of_run.rounds()[-1]
    assert last["server"]["scores"]["own_parts_of_a_test:worst_recall"] > 0.9
    assert folder_of_run.split()["counts"][0] == [8, 8, 8]
    assert len(last["clients"]) == 2
    assert "worst" in capsys.readouterr().out
