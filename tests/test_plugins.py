"""Everything plugs in by path from the user's own folder: data, partition, model, loss, strategy, metric."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedvision.cli import main
from fedvision.runs.folder import RunFolder

MODULE = '''
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.algorithms.base import RoundStrategy


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
    assert main.main(["simulate", "mine/own.toml", "--out", "run"]) == 0
    folder_of_run = RunFolder.read(tmp_path / "run")
    last = folder_of_run.rounds()[-1]
    assert last["server"]["scores"]["own_parts_of_a_test:worst_recall"] > 0.9
    assert folder_of_run.split()["counts"][0] == [8, 8, 8]
    assert len(last["clients"]) == 2
    assert "worst" in capsys.readouterr().out


@pytest.mark.long
def test_the_reports_command_makes_the_run_again_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts beside the experiment's file and a path of images as seen from where the run was started."""
    folder = tmp_path / "my parts"
    folder.mkdir()
    (folder / "own_loss_of_a_test.py").write_text(MODULE)
    labels = np.arange(30) % 3
    np.savez(tmp_path / "own.npz", train_images=np.zeros((30, 8, 8), np.uint8), train_labels=labels)
    (folder / "own.toml").write_text(
        'name = "own"\nrounds = 1\nloss = { use = "own_loss_of_a_test:smoothed" }\n'
        'data = { use = "npz", path = "own.npz" }\npartition = { use = "iid", clients = 2 }\n'
        'model = { use = "cnn", width = 2, dense = 4 }\nstrategy = { use = "fedavg" }\n'
    )
    monkeypatch.chdir(tmp_path)
    assert main.main(["simulate", "my parts/own.toml", "--engine", "serial"]) == 0
    run = tmp_path / "runs/own"
    (command,) = re.findall(r"<pre>((?:cd|PYTHON|fedvision).*)</pre>", (run / "report.html").read_text())
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-c", html.unescape(command)],
        cwd="/",
        env={**os.environ, "PATH": programs},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    again = run.with_name("own-again")
    assert (again / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
