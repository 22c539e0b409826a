"""How many clients at once: set, fixed on a CPU, measured on cuda (here with its figures made up)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedvision.engines.stack_size import FIRST, LARGEST, ON_CPU, StackSizeTuner

CUDA = torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A device of 1000 bytes, of which 100 are taken and 300 are held by torch."""
    figures = SimpleNamespace(allocated=100, peak=0, reserved=300, free=700, resets=0)

    def reset(device: torch.device) -> None:
        figures.resets += 1

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: figures.allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: figures.peak)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: figures.reserved)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (figures.free, 1000))
    return figures


def test_a_number_that_is_set_stays_on_any_device() -> None:
    for device in ("cpu", "cuda"):
        capacity = StackSizeTuner(torch.device(device), 7)
        with capacity.watch(7):
            pass
        assert capacity.size == 7


def test_a_cpu_takes_a_fixed_number() -> None:
    capacity = StackSizeTuner(torch.device("cpu"))
    with capacity.watch(16):
        pass
    assert capacity.size == ON_CPU


def test_a_gpu_takes_what_fits_by_what_the_first_clients_took(cuda: SimpleNamespace) -> None:
    capacity = StackSizeTuner(CUDA)
    assert capacity.size == FIRST
    with capacity.watch(FIRST):
        cuda.peak = 180
    # 80 bytes for 4 clients are 20 for one; 700 + (300 - 100) are free, 0.6 of it is 540: 27 clients.
    assert capacity.size == 27
    with capacity.watch(27):
        cuda.peak = 990
    assert (capacity.size, cuda.resets) == (27, 1)


def test_tiny_models_do_not_make_endless_stacks_and_huge_ones_train_alone(cuda: SimpleNamespace) -> None:
    for peak, size in [(100, LARGEST), (100_000, 1)]:
        capacity = StackSizeTuner(CUDA)
        with capacity.watch(FIRST):
            cuda.peak = peak
        assert capacity.size == size


def test_what_failed_is_measured_no_more_and_halved(cuda: SimpleNamespace) -> None:
    capacity = StackSizeTuner(CUDA)
    with pytest.raises(torch.OutOfMemoryError), capacity.watch(4):
        raise torch.OutOfMemoryError
    capacity.exceeded(4)
    with capacity.watch(2):
        cuda.peak = 180
    assert capacity.size == 2
    capacity.exceeded(1)
    assert capacity.size == 1
