"""Samplers: shares by hand and by counting, limits that are ``shuffle`` to the bit, guests that go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision import registry
from fedvision.config import TrainingConfig, TransformConfig
from fedvision.data.shards import Shard
from fedvision.data.transforms import prepare
from fedvision.errors import DataError, FedVisionError, PluginError
from fedvision.tasks.classification import Classification
from fedvision.training.loop import LoopSettings, positions
from fedvision.training.samplers import Sampler, sampler_maker
from fedvision.types import PluginSpec, TrainRequest

BY_CLASS = [name for name in registry.BUILTINS["sampler"] if name != "shuffle"]


def shard_of(counts: list[int], seed: int = 0) -> Shard:
    """Return a client with so many images of each class, in a random order, that are not all of its base."""
    labels = np.repeat(np.arange(len(counts)), counts)
    indices = np.random.default_rng(seed).permutation(len(labels)) + 3
    base = np.zeros(len(labels) + 3, np.int64)
    base[3:] = labels
    return Shard(images=np.zeros((len(base), 1, 1, 1), np.uint8), labels=base, indices=indices)


def build(name: str, round: int = 1, rounds: int = 1, **args: Any) -> Sampler:
    return sampler_maker(PluginSpec(use=name, args=args), rounds)(round)


def drawn(sampler: Sampler, counts: list[int], seed: int = 0, epochs: int = 1) -> list[np.ndarray]:
    """Return the positions of some epochs of one stream."""
    rng, shard = np.random.default_rng(seed), shard_of(counts)
    return [sampler(shard, rng) for _ in range(epochs)]


def classes(sampler: Sampler, counts: list[int], seed: int = 0) -> list[int]:
    """Return how many images of each class an epoch has."""
    labels = shard_of(counts).targets[drawn(sampler, counts, seed)[0]]
    return np.bincount(labels, minlength=len(counts)).tolist()


def test_positions_of_the_default_are_those_of_ever() -> None:
    """The batches that runs drew before there were samplers, written down."""
    chosen = LoopSettings(
        task=Classification(),
        training=TrainingConfig(batch_size=8, epochs=2),
        transform=prepare(TransformConfig(), 1),
        device=torch.device("cpu"),
        seed=5,
        rounds=10,
    )
    request = TrainRequest(round=2, client=4, state={})
    batches = [batch.tolist() for batch in positions(shard_of([9, 0, 12]), request, chosen, False)]
    assert batches == [
        [4, 8, 15, 9, 2, 6, 12, 0],
        [16, 19, 7, 14, 17, 18, 1, 3],
        [13, 11, 10, 5, 20],
        [5, 20, 3, 8, 0, 2, 12, 14],
        [19, 15, 11, 10, 6, 9, 16, 4],
        [13, 17, 1, 7, 18],
    ]


@pytest.mark.parametrize(
    ("sampler", "counts", "expected"),
    [
        (build("balanced"), [70, 0, 15, 5], [30, 0, 30, 30]),
        # Square roots 8, 4 and 2 of 84 images: 84 x 8 / 14, ...
        (build("square-root"), [64, 16, 0, 4], [48, 24, 0, 12]),
        (build("effective", beta=0.0), [70, 0, 15, 5], [70, 0, 15, 5]),
        # t = 1/2: 8 (1/2 x 6/8 + 1/2 x 1/2) = 5 and 8 (1/2 x 2/8 + 1/4) = 3.
        (build("progressive", 3, 5), [6, 2], [5, 3]),
        (build("progressive", 5, 5), [6, 2], [4, 4]),
        # The only round of a run is the first one.
        (build("progressive", 1, 1), [6, 2], [6, 2]),
    ],
)
def test_whole_shares_are_met_in_every_epoch(
    sampler: Sampler, counts: list[int], expected: list[int]
) -> None:
    assert all(classes(sampler, counts, seed) == expected for seed in range(5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args", "counts", "shares"),
    [
        ("balanced", {}, [80, 15, 5], [1 / 3, 1 / 3, 1 / 3]),
        ("square-root", {}, [81, 16, 1], [9 / 14, 4 / 14, 1 / 14]),
        # Effective numbers 1 and 1 + 1/2: weights 1 / 1 and 2 / 1.5.
        ("effective", {"beta": 0.5}, [1, 2], [3 / 7, 4 / 7]),
        ("progressive", {"round": 2, "rounds": 4}, [80, 20], [2 / 3 * 0.8 + 1 / 6, 2 / 3 * 0.2 + 1 / 6]),
    ],
)
def test_each_draw_has_its_share(
    name: str, args: dict[str, Any], counts: list[int], shares: list[float]
) -> None:
    """The first draw of many epochs is a binomial count; so is each image's of its class."""
    sampler, shard, rng = build(name, **args), shard_of(counts), np.random.default_rng(7)
    epochs = 4000
    first = np.array([sampler(shard, rng)[0] for _ in range(epochs)])
    found = np.bincount(shard.targets[first], minlength=len(counts))
    p = np.array(shares)
    assert (np.abs(found - epochs * p) < 4 * np.sqrt(epochs * p * (1 - p))).all()
    q = (p / counts)[shard.targets]
    images = np.bincount(first, minlength=len(shard))
    assert (np.abs(images - epochs * q) < 5 * np.sqrt(epochs * q * (1 - q))).all()


@pytest.mark.parametrize("name", BY_CLASS)
def test_equal_counts_make_it_shuffle_to_the_bit(name: str) -> None:
    counts = [7, 0, 7, 7]
    for round in (1, 2, 3):
        ours = drawn(build(name, round, 3), counts, 4, epochs=3)
        plain = drawn(build("shuffle"), counts, 4, epochs=3)
        assert [own.tolist() for own in ours] == [other.tolist() for other in plain]


def test_progressive_begins_as_shuffle_and_ends_as_balanced() -> None:
    for round, parent in ((1, "shuffle"), (6, "balanced")):
        ours, theirs = (drawn(s, [40, 7, 3], 1, 2) for s in (build("progressive", round, 6), build(parent)))
        assert [own.tolist() for own in ours] == [other.tolist() for other in theirs]


@settings(max_examples=60)
@given(
    name=st.sampled_from(BY_CLASS),
    counts=st.lists(st.just(0) | st.integers(1, 60), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 99),
    round=st.integers(1, 4),
)
def test_epochs_keep_their_size_and_repeat_evenly(
    name: str, counts: list[int], seed: int, round: int
) -> None:
    first, second = (drawn(build(name, round, 4), counts, seed)[0] for _ in range(2))
    labels, n = shard_of(counts).targets, sum(counts)
    assert first.tolist() == second.tolist()
    assert first.dtype == np.int64
    assert len(first) == n
    times = np.bincount(first, minlength=n)
    for label, count in enumerate(counts):
        own = times[labels == label]
        # Each class that is there comes at least as often as its proportion or an equal share, rounded.
        assert own.sum() >= np.floor(min(count, n / np.count_nonzero(counts)) + 1e-9) * (count > 0)
        assert count == 0 or own.max() - own.min() <= 1


@pytest.mark.parametrize("name", BY_CLASS)
def test_several_labels_are_refused(name: str) -> None:
    several = Shard(
        images=np.zeros((3, 1, 1, 1), np.uint8), labels=np.eye(3, dtype=np.uint8), indices=np.arange(3)
    )
    with pytest.raises(DataError, match=r"training\.sampler goes by class and needs one class an image"):
        build(name)(several, np.random.default_rng(0))


def guest(*, what: str) -> Callable[..., Any]:
    """A sampler as a user may write it, mostly wrong."""

    def sample(shard: Shard, rng: np.random.Generator) -> Any:
        if what == "fails":
            raise KeyError("grades")
        if what == "refuses":
            raise DataError("these images have no grades")
        n = len(shard)
        results: dict[str, Any] = {
            "list": list(range(n)),
            "short": np.arange(n - 1),
            "floats": np.arange(n) * 1.0,
            "beyond": np.arange(n) + 1,
            "negative": np.arange(n) - 1,
            "none": None,
        }
        return results[what]

    return sample


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("fails", r"failed: KeyError: 'grades'"),
        ("short", r"a whole number from 0 to 4 for each of an epoch's 5 images, not int64 \[4\]$"),
        ("floats", r"images, not float64 \[5\]$"),
        ("beyond", r"images, not int64 \[5\] from 1 to 5$"),
        ("negative", r"images, not int64 \[5\] from -1 to 3$"),
        ("none", r"images, not object \[\]$"),
    ],
)
def test_a_guest_that_goes_wrong_is_one_sentence(what: str, problem: str) -> None:
    use = f"{__name__}:guest"
    with pytest.raises(PluginError, match=rf"^training\.sampler: '{use}' (must return .*)?{problem}"):
        drawn(build(use, what=what), [5])


def test_a_guest_may_return_a_list_and_refuse() -> None:
    use = f"{__name__}:guest"
    assert drawn(build(use, what="list"), [5])[0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(FedVisionError, match=r"^these images have no grades$"):
        drawn(build(use, what="refuses"), [5])


def test_an_unknown_sampler_and_a_wrong_key_are_one_sentence() -> None:
    with pytest.raises(PluginError, match=r"there is no such sampler.*balanced"):
        build("balance")
    with pytest.raises(PluginError, match="it takes no key 'gamma'"):
        build("effective", gamma=0.1)
    with pytest.raises(PluginError, match="it takes no key 'round'"):
        sampler_maker(PluginSpec(use="progressive", args={"round": 2}), 4)
