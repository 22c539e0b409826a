"""Streams: the same for the same purpose, unrelated otherwise, and never the global one."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.random import mtrand

from fedvision import seeding


def test_a_stream_depends_on_root_purpose_and_ids_alone() -> None:
    assert seeding.derive(7, "batches", 3, 1) == seeding.derive(7, "batches", 3, 1)
    others = {
        seeding.derive(7, "batches", 3, 1),
        seeding.derive(8, "batches", 3, 1),
        seeding.derive(7, "dropout", 3, 1),
        seeding.derive(7, "batches", 1, 3),
        seeding.derive(7, "batches", 3),
        seeding.derive(7, "batches", 3, 0),
        seeding.derive(7, "batches", 3, 0, 0),
    }
    assert len(others) == 7


def test_streams_do_not_touch_the_global_generators() -> None:
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    seeding.numpy_stream(1, "a").random()
    torch.rand(2, generator=seeding.torch_stream(1, "a"))
    with seeding.torch_global(1, "a"):
        torch.rand(3)
    with seeding.global_streams(1, "a"):
        random.random()
        np.random.normal()  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_global_blocks_repeat() -> None:
    draws = []
    for _ in range(2):
        with seeding.torch_global(1, "model"), seeding.global_streams(1, "select"):
            draws.append((torch.rand(1).item(), random.random(), np.random.normal()))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_a_global_block_draws_what_torch_draws_after_manual_seed() -> None:
    with seeding.torch_global(1, "dropout", 2, 3):
        drawn = torch.rand(4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(1, "dropout", 2, 3))
        assert torch.equal(drawn, torch.rand(4))


def test_a_global_block_restores_after_an_error() -> None:
    def failing() -> None:
        with seeding.torch_global(1, "a"):
            raise ValueError("inside")

    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="inside"):
        failing()
    assert torch.equal(torch.random.get_rng_state(), before)


def drawn() -> tuple[float, float, float]:
    return torch.rand(1).item(), random.random(), np.random.normal()  # noqa: NPY002


def test_secret_generators_cannot_be_repeated_and_leave_the_others_alone() -> None:
    with seeding.torch_global(1, "a"), seeding.global_streams(1, "a"):
        plain = [drawn() for _ in range(3)]
    seen = []
    for _ in range(2):
        with seeding.torch_global(1, "a"), seeding.global_streams(1, "a"):
            first = drawn()
            with seeding.SecretGlobals() as secret:
                seen.append(drawn())
                meanwhile = list(secret.paused(drawn() for _ in range(1)))
                seen.append(drawn())
            assert [first, *meanwhile, drawn()] == plain
    assert all(len(set(kind)) == 4 for kind in zip(*seen, strict=True))


def test_secret_generators_are_put_back_after_an_error() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("x")

    before = mtrand.get_bit_generator(), random.getstate()
    with pytest.raises(KeyError), seeding.SecretGlobals() as secret:
        list(secret.paused(broken()))
    assert (mtrand.get_bit_generator(), random.getstate()) == before
