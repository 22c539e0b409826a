"""Rare classes at few clients: class counts and clients' sizes stay, and what cannot be is one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision.config import PartitionConfig
from fedvision.data.class_frequency_groups import tail_groups
from fedvision.data.dataset import ImageSet
from fedvision.data.partition import split
from fedvision.data.partition.notices import split_notices
from fedvision.data.partition.tail_clients import concentrate
from fedvision.errors import DataError


def image_set(labels: Any, **more: Any) -> ImageSet:
    return ImageSet(images=np.zeros((len(labels), 2, 2, 1), np.uint8), labels=np.asarray(labels), **more)


def make(use: str, holders: int, *, clients: int = 8, seed: int = 3, **more: Any) -> split.Split:
    """Split 10 classes of 60 images with a long tail of 20."""
    images = image_set(
        np.tile(np.arange(10), 60), columns=more.pop("columns", {}), group=more.pop("group", "")
    )
    holdout = more.pop("holdout", 0.0)
    config = PartitionConfig(use=use, clients=clients, imbalance=20, tail_clients=holders, args=more)
    return split.make(images, config, num_classes=10, seed=seed, holdout=holdout)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("holders", [1, 2, 5])
@pytest.mark.parametrize(
    ("use", "args"), [("iid", {}), ("dirichlet", {"alpha": 0.3}), ("quantity", {"exponent": 0.5})]
)
def test_rare_classes_are_at_so_many_clients(use: str, args: dict[str, Any], holders: int, seed: int) -> None:
    before, after = (make(use, number, seed=seed, **args) for number in (0, holders))
    old, new = before.counts(), after.counts()
    assert new.sum(axis=0).tolist() == old.sum(axis=0).tolist()
    assert new.sum(axis=1).tolist() == old.sum(axis=1).tolist()
    assert after.left_out.tolist() == before.left_out.tolist()
    tail = list(tail_groups(after.totals)["tail"])
    assert sorted(after.tail) == sorted(tail) == [7, 8, 9]
    assert np.count_nonzero(new[:, tail].sum(axis=1)) <= holders
    assert holders > 2 or np.count_nonzero(old[:, tail].sum(axis=1)) > holders
    assert after.digest == make(use, holders, seed=seed, **args).digest != before.digest


def test_by_hand() -> None:
    # Class 1 is rare, and one of clients 0 and 1 takes both of its images for one of its own.
    labels = np.array([0, 0, 1, 0, 1, 0])
    parts, tail = concentrate([np.array([0, 1, 2]), np.array([3, 4, 5])], labels, 1, np.random.default_rng(0))
    assert tail == (1,)
    assert sorted(np.concatenate(parts).tolist()) == list(range(6))
    assert sorted(labels[part].sum() for part in parts) == [0, 2]
    (holder,) = [part.tolist() for part in parts if labels[part].sum()]
    assert {2, 4} < set(holder)


def test_all_clients_change_nothing() -> None:
    assert make("dirichlet", 8, alpha=0.3).digest == make("dirichlet", 0, alpha=0.3).digest


@settings(max_examples=80)
@given(
    counts=st.lists(st.integers(0, 30), min_size=2, max_size=8),
    clients=st.integers(1, 6),
    holders=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_counts_and_sizes_stay_or_it_is_refused(
    counts: list[int], clients: int, holders: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    owner = rng.integers(-1, clients, len(labels))  # -1: an image that no client has
    parts = [np.flatnonzero(owner == client) for client in range(clients)]
    try:
        found, tail = concentrate(parts, labels, holders, rng)
    except DataError:
        there = np.bincount(labels[owner >= 0], minlength=len(counts))
        present = there[there > 0]
        rare = [] if not len(present) else list(tail_groups(present).get("tail", ()))
        largest = sum(sorted(map(len, parts))[-holders:])
        assert holders > clients or not rare or present[rare].sum() > largest
        return
    assert [len(part) for part in found] == [len(part) for part in parts]
    assert sorted(np.concatenate(found).tolist()) == np.flatnonzero(owner >= 0).tolist()
    assert all((np.diff(part) > 0).all() for part in found)
    assert sum(bool(np.isin(labels[part], tail).any()) for part in found) <= holders


def test_small_clients_give_way_to_larger_ones() -> None:
    labels = np.array([0] * 20 + [1] * 4)
    parts = [np.array([number]) for number in range(6)] + [np.arange(6, 24)]
    for seed in range(5):
        found, _ = concentrate(parts, labels, 1, np.random.default_rng(seed))
        assert labels[found[6]].sum() == 4


def test_a_holdout_comes_afterwards() -> None:
    held = make("iid", 2, holdout=0.25)
    having = {k for k in range(8) if np.isin(held.labels[[*held.clients[k], *held.test(k)]], held.tail).any()}
    assert len(having) == 2


def test_a_notice_says_where_they_are() -> None:
    found = make("iid", 2)
    clients = np.flatnonzero(found.counts()[:, [7, 8, 9]].sum(axis=1))
    names = [f"class {c}" for c in range(10)]
    assert (
        f"training images of class 7, class 8, class 9 are at clients {clients[0]}, {clients[1]} alone "
        "(partition.tail_clients)" in split_notices(found, names)
    )
    assert not any("tail_clients" in line for line in split_notices(make("iid", 0), names))


@pytest.mark.parametrize(
    ("use", "more", "why"),
    [
        ("iid", {"holders": 9}, "= 9 is more than the 8 clients; lower it"),
        (
            "column",
            {"name": "site"},
            "moves images between clients, and clients of a column are as they are;",
        ),
        ("population", {"alpha": 1.0}, "and clients that are made on access share images;"),
        ("shards", {}, "and shards promise a number of classes for each client;"),
        ("iid", {"group": "site"}, "and data.group = 'site' keeps images together;"),
    ],
)
def test_what_cannot_be_is_one_sentence(use: str, more: dict[str, Any], why: str) -> None:
    columns = {"site": np.arange(600) % 8}
    with pytest.raises(DataError, match=rf"^partition\.tail_clients = \d .*{why}|= 9 is more"):
        make(use, **{"holders": 2, "columns": columns, **more})


def test_too_small_clients_and_equal_classes_are_one_sentence() -> None:
    labels = np.array([0] * 20 + [1] * 19)
    parts = np.array_split(np.arange(39), 13)
    with pytest.raises(
        DataError, match=r"= 2: the rare classes have 19 images, and the 2 largest .* room for 6"
    ):
        concentrate(parts, labels, 2, np.random.default_rng(0))
    with pytest.raises(DataError, match="but no class is rarer than others"):
        concentrate(parts, np.arange(39) % 3, 2, np.random.default_rng(0))
    # One frequent class and nine alike: reports have no tail here either.
    with pytest.raises(DataError, match="but no class is rarer than others"):
        concentrate(parts, np.r_[np.zeros(30, np.int64), np.arange(1, 10)], 2, np.random.default_rng(0))


def test_several_labels_are_refused() -> None:
    several = np.zeros((40, 3), np.uint8)
    several[:, 0] = 1
    config = PartitionConfig(use="iid", clients=4, tail_clients=1)
    with pytest.raises(DataError, match="it needs one class an image"):
        split.make(image_set(several), config, num_classes=3, seed=0)
