"""Shards share their base; held-out images are disjoint, stratified and drawn without bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedvision.config import PartitionConfig
from fedvision.data.dataset import ImageSet
from fedvision.data.partition import split
from fedvision.data.partition.client_shards import ClientShards
from fedvision.data.partition.holdout import held_out
from fedvision.data.shards import Shard
from fedvision.errors import DataError


def numbered(labels: list[int]) -> ImageSet:
    """Image i is filled with the number i."""
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ImageSet(
        images=np.ascontiguousarray(np.broadcast_to(pixels, (len(labels), 2, 3, 1))),
        labels=np.array(labels, np.int64),
    )


def test_batch_reads_the_base_through_the_indices() -> None:
    base = numbered([0, 1, 2, 0, 1, 2])
    shard = Shard(images=base.images, labels=base.labels, indices=np.array([1, 4, 5]))
    images, labels = shard.batch(np.array([2, 0]))
    assert images[:, 0, 0, 0].tolist() == [5, 1]
    assert labels.tolist() == [2, 1]
    assert images.shape == (2, 2, 3, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert len(shard) == 3
    assert shard.counts(4).tolist() == [0, 2, 1, 0]
    images[:] = 9
    assert base.images.max() == 5


def test_take_copies_no_pixel_and_composes() -> None:
    whole = Shard.whole(numbered([0, 1, 2, 3]))
    part = whole.take(np.array([3, 1, 0])).take(np.array([0, 2]))
    assert part.images is whole.images
    assert part.indices.tolist() == [3, 0]
    assert len(whole) == 4
    assert len(whole.take(np.array([], np.int64))) == 0


def test_a_memory_map_is_read_and_never_written(tmp_path: Path) -> None:
    base = numbered([0, 1, 0])
    base.images.tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=base.images.shape)
    images, _ = Shard.whole(ImageSet(images=mapped, labels=base.labels)).batch(np.array([2]))
    assert type(images) is np.ndarray
    assert images.flags.writeable
    np.testing.assert_array_equal(images[0], base.images[2])


def holdout(shard: Shard, share: float, rng: np.random.Generator) -> tuple[Shard, Shard]:
    """Return the images of a shard that train and those that are held out."""
    held = held_out(shard.labels[shard.indices], share, rng)
    return shard.take(np.flatnonzero(~held)), shard.take(np.flatnonzero(held))


@settings(max_examples=100)
@example(labels=[0], share=0.99, seed=0)
@example(labels=[0, 1], share=0.99, seed=0)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 999),
)
def test_holdout_is_disjoint_complete_and_stratified(labels: list[int], share: float, seed: int) -> None:
    shard = Shard.whole(numbered(labels))
    train, test = holdout(shard, share, np.random.default_rng(seed))
    assert sorted([*train.indices, *test.indices]) == list(range(len(labels)))
    assert (np.diff(train.indices) > 0).all()
    assert (np.diff(test.indices) > 0).all()
    assert len(train) >= 1
    # One image more may stay for training where all would have been held out.
    lost = 1 if len(train) == 1 else 0
    for there, held in zip(shard.counts(5), test.counts(5), strict=True):
        assert there * share - 1 - lost < held < there * share + 1
    assert len(labels) * share - 1 - lost < len(test) < len(labels) * share + 1


def test_every_image_is_held_out_equally_often() -> None:
    shard = Shard.whole(numbered([0, 0, 0, 0, 1, 2, 2]))
    rng = np.random.default_rng(0)
    times = np.zeros(7)
    for _ in range(4000):
        times[holdout(shard, 0.3, rng)[1].indices] += 1
    # The standard deviation of each share is 0.007.
    np.testing.assert_allclose(times / 4000, 0.3, atol=0.03)


def test_the_only_image_trains_and_share_zero_holds_nothing_out() -> None:
    for seed in range(20):
        train, test = holdout(Shard.whole(numbered([2])), 0.9, np.random.default_rng(seed))
        assert (len(train), len(test)) == (1, 0)
    train, test = holdout(Shard.whole(numbered([1, 2, 1])), 0, np.random.default_rng(0))
    assert train.indices.tolist() == [0, 1, 2]
    assert len(test) == 0


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    base = numbered([0, 1])
    with pytest.raises(DataError, match=r"evaluation\.holdout must be >= 0 and < 1"):
        holdout(Shard.whole(base), share, np.random.default_rng(0))
    with pytest.raises(DataError, match=r"evaluation\.holdout must be >= 0 and < 1"):
        made(base, PartitionConfig(clients=1), share)


def made(base: ImageSet, table: PartitionConfig, share: float = 0.0, *, seed: int = 5) -> ClientShards:
    """Return the clients of a split with three classes that have images at most, and one that has none."""
    return ClientShards(base, split.make(base, table, num_classes=4, seed=seed, holdout=share))


def test_client_shards_are_the_split_in_any_order_of_access() -> None:
    base, table = numbered([k % 3 for k in range(60)]), PartitionConfig(clients=4)
    shards, again, whole = made(base, table, 0.3), made(base, table, 0.3), made(base, table)
    assert len(shards) == 4
    assert shards.split.digest == whole.split.digest
    backwards = {client: again.test(client).indices.tolist() for client in (3, 2, 1, 0)}
    for client in range(4):
        train, test = shards.train(client), shards.test(client)
        assert sorted([*train.indices, *test.indices]) == whole.split.clients[client].tolist()
        assert test.indices.tolist() == backwards[client]
        assert train.images is base.images


def test_without_a_holdout_clients_train_on_all_they_have() -> None:
    base = numbered([k % 3 for k in range(20)])
    shards = made(base, PartitionConfig(clients=2))
    assert sorted(np.concatenate([shards.train(client).indices for client in range(2)])) == list(range(20))
    assert [len(shards.test(client)) for client in range(2)] == [0, 0]


def test_clients_hold_out_by_streams_of_their_own() -> None:
    base, table = numbered([0] * 40), PartitionConfig(clients=2)
    shards, whole = made(base, table, 0.5), made(base, table)
    places = [np.isin(whole.split.clients[k], shards.test(k).indices).tolist() for k in range(2)]
    assert places[0] != places[1]


def test_totals_are_counted_after_the_holdout() -> None:
    base = numbered([k % 3 for k in range(60)])
    table = PartitionConfig(use="dirichlet", clients=20, args={"alpha": 0.3})
    assert made(base, table).split.totals.tolist() == [20, 20, 20, 0]
    shards = made(base, table, 0.3)
    counted = np.array([shards.train(client).counts(4) for client in range(20)])
    assert shards.split.totals.tolist() == counted.sum(axis=0).tolist() != [14, 14, 14, 0]
    assert shards.split.counts().tolist() == counted.tolist()
    assert [shards.split.size(client) for client in range(20)] == counted.sum(axis=1).tolist()
    assert shards.split.held_out == sum(len(shards.test(client)) for client in range(20)) > 0
    assert shards.split.held_out + counted.sum() == 60


def test_shards_of_a_lazy_split_are_made_on_access() -> None:
    base = numbered([k % 3 for k in range(60)])
    table = PartitionConfig(use="population", clients=1_000_000, args={"alpha": 1, "mean_images": 10})
    shards = made(base, table, 0.25)
    assert len(shards) == 1_000_000
    train, test = shards.train(987_654), shards.test(987_654)
    assert train.indices.tolist() == shards.split.clients[987_654].tolist()
    assert len(train) == shards.split.size(987_654)
    assert len(train) + len(test) == made(base, table).split.size(987_654)
    assert len(made(base, table).test(5)) == 0
