"""Kernels, bytes and steps, counted by hand."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from roofline import Dispatched, images_and_steps, launches, plays
from torch import nn

from fedvision.types import PluginSpec
from tests.experiments import tiny


def test_the_kernels_of_a_layer_forward_and_back_are_counted() -> None:
    layer, x = nn.Linear(3, 2), torch.zeros(4, 3)
    with Dispatched() as dispatched:
        loss = layer(x).sum()
        # addmm of bias [2], x [4, 3] and weight [3, 2]; sum: [4, 2] to a number.
        assert (dispatched.launches, dispatched.bytes) == (2, 4 * ((2 + 12 + 6 + 8) + (8 + 1)))
        loss.backward()
    # Its gradient is one; the weight's is a product, the bias's a sum; x needs none.
    assert dispatched.launches == 2 + 3


def test_views_memory_and_questions_launch_nothing() -> None:
    x = torch.arange(6.0)
    with Dispatched() as dispatched:
        y = x.view(2, 3).t().detach()
        torch.empty(5)
        x.new_empty(5)
        torch.empty_like(x)
        float(x[0])
        assert dispatched.launches == 0
        y.add_(1)  # in place
        torch._foreach_add_([x, y], 1.0)  # one for all, and nothing is returned
        x.clone()
    assert dispatched.launches == 3


@pytest.mark.long
def test_the_launches_of_a_round_are_those_of_its_steps() -> None:
    # Two clients of 721 images: 6 steps of 128 each, the serial engine's one after the other.
    config = tiny(
        rounds=2,
        strategy={"use": "fedavg", "fraction": 1.0},
        partition={"use": "iid", "clients": 2},
        training={"batch_size": 128, "lr": 0.1, "device": "cpu"},
    )
    serial = launches(config, PluginSpec(use="serial"))
    stacked = launches(config, PluginSpec(use="vectorized", args={"stack": 2}))
    assert serial % 12 == 0
    # Beside its steps the plan of two epochs takes a copy that the plan of one does without.
    assert stacked % 6 <= 1
    # A step of the network alone, without the optimiser's, is 26 kernels and more.
    assert serial / 12 > 26
    assert stacked < serial


def test_images_and_steps_leave_the_first_round_out(tmp_path: Path) -> None:
    # Clients of 5, 0, 33 and 64 images.
    ends, cohorts = np.array([5, 5, 38, 102]), np.array([[3, 3], [0, 2], [1, 3], [2, 2]])
    np.savez(tmp_path / "w.npz", ends=ends, cohorts=cohorts)
    assert images_and_steps(tmp_path / "w.npz", 3, 32) == (5 + 33 + 64, 1 + 2 + 2)


@pytest.mark.parametrize(("device", "waits"), [("cpu", 0), ("cuda", 4)])
def test_times_are_taken_when_the_gpu_is_done(
    device: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "peers")
    common = importlib.import_module("common")
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = common.Clock(0.0, device)
    clock.evaluate(nn.Flatten(), torch.zeros(1, 1, 1), torch.zeros(1, dtype=torch.int64), 1)
    clock.round()
    assert len(waited) == waits
    assert clock.marks[0] >= clock.evaluation


def test_a_stack_takes_the_steps_of_its_longest_client(tmp_path: Path) -> None:
    # Clients of 10, 33 and 64 images; batches of 32: 1, 2 and 2 steps.
    np.savez(tmp_path / "w.npz", ends=[10, 43, 107], cohorts=[[0, 0], [0, 1], [1, 2]])
    assert plays(tmp_path / "w.npz", 2, 32) == 1.5
    assert plays(tmp_path / "w.npz", 3, 32) == pytest.approx(5 / 3)
