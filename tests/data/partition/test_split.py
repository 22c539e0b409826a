"""A split puts long tail and partition together and trusts no partitioner."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from fedvision.config import PartitionConfig
from fedvision.data.dataset import ImageSet
from fedvision.data.partition import partition_validation as checks
from fedvision.data.partition import split
from fedvision.errors import ConfigError, DataError, PluginError
from fedvision.types import Partitioner

LABELS = np.tile(np.arange(4), 50)


def image_set(labels: Any = LABELS, **columns: Any) -> ImageSet:
    labels = np.asarray(labels, np.int64)
    return ImageSet(images=np.zeros((len(labels), 2, 2, 1), np.uint8), labels=labels, columns=columns)


def config(use: str = "iid", clients: int | None = 4, imbalance: float = 1.0, **args: Any) -> PartitionConfig:
    return PartitionConfig(use=use, clients=clients, imbalance=imbalance, args=args)


def make(settings: PartitionConfig, images: ImageSet | None = None, seed: int = 3) -> split.Split:
    chosen = image_set() if images is None else images
    return split.make(chosen, settings, num_classes=4, seed=seed)


def plugin(*, case: str) -> Partitioner:
    """A partition as a user may write it, right or wrong."""

    def partition(labels: Any, clients: int, rng: np.random.Generator) -> Any:
        parts: Any = [np.arange(client, len(labels), clients) for client in range(clients)]
        if case == "backwards":
            return tuple(part[::-1].astype(np.int32) for part in parts)
        if case == "incomplete":
            return [part[:-1] for part in parts]
        if case == "lists":
            return [part.tolist() for part in parts]
        if case == "overlap":
            parts[2] = np.append(parts[2], 5)
        if case == "empty":
            parts[1], parts[3] = [], []
        if case == "beyond":
            parts[0] = np.append(parts[0], len(labels))
        if case == "negative":
            parts[0] = np.append(parts[0][1:], -1)
        if case == "floats":
            parts[0] = parts[0] / 2
        if case == "square":
            parts[0] = parts[0].reshape(2, -1)
        if case == "short":
            return parts[:-1]
        if case == "none":
            return None
        if case == "fails":
            raise ValueError("no idea")
        return parts

    return partition


PLUGIN = f"{__name__}:plugin"


def test_a_split_is_complete_and_counted() -> None:
    made = make(config("dirichlet", alpha=0.3))
    assert sorted(np.concatenate(made.clients)) == list(range(200))
    assert made.left_out.tolist() == []
    counts = made.counts()
    for client, indices in enumerate(made.clients):
        assert counts[client].tolist() == [int((LABELS[indices] == c).sum()) for c in range(4)]
    assert made.totals.tolist() == [50, 50, 50, 50]
    assert made.exact


def test_the_long_tail_comes_first_and_is_left_out() -> None:
    made = make(config(imbalance=8))
    # 50, 25, 12.5 and 6.25 images, rounded down.
    assert made.totals.tolist() == [50, 25, 12, 6]
    assert sorted([*np.concatenate(made.clients), *made.left_out]) == list(range(200))
    assert len(made.left_out) == 200 - 93
    assert (np.diff(made.left_out) > 0).all()


def test_seed_and_digest() -> None:
    one, same, other = make(config()), make(config()), make(config(), seed=4)
    assert one.digest == same.digest != other.digest
    numbers = [len(part) for part in one.clients] + [int(i) for part in one.clients for i in part]
    data = b"".join(number.to_bytes(8, "little") for number in numbers)
    assert one.digest == hashlib.sha256(data).hexdigest()


def test_the_digest_sees_where_one_client_ends() -> None:
    halves = make(config("column", None, name="a"), image_set(a=np.repeat([0, 1], 100)))
    thirds = make(config("column", None, name="a"), image_set(a=np.repeat([0, 1], [99, 101])))
    assert halves.digest != thirds.digest


def test_a_column_settles_the_number_of_clients_after_the_long_tail() -> None:
    # The long tail keeps one of the two images of class 3; the client of the other one is gone.
    images = image_set([0, 0, 0, 0, 3, 3], site=np.array(["a", "a", "b", "b", "c", "d"]))
    made = make(config("column", None, imbalance=100, name="site"), images)
    assert [len(part) for part in made.clients] == [2, 2, 1]
    assert made.left_out.tolist() in ([4], [5])
    with pytest.raises(DataError, match=r"partition\.clients = 2, but column 'site' has 4 values"):
        make(config("column", 2, name="site"), images)


@pytest.mark.parametrize("use", ["iid", PLUGIN])
def test_missing_number_of_clients_is_an_error(use: str) -> None:
    args = {"case": "good"} if use == PLUGIN else {}
    with pytest.raises(ConfigError, match=r"^partition\.clients is missing; .*add clients = \.\.\.$"):
        make(config(use, None, **args))


@pytest.mark.parametrize("case", ["good", "backwards", "lists"])
def test_a_plugins_partition_is_taken_in_any_order_and_integer_type(case: str) -> None:
    made = make(config(PLUGIN, case=case))
    assert [part.tolist() for part in made.clients] == [list(range(k, 200, 4)) for k in range(4)]
    assert all(part.dtype == np.int64 for part in made.clients)


def test_notice_on_images_that_a_plug_in_leaves_out() -> None:
    made = make(config(PLUGIN, case="incomplete"))
    assert made.left_out.tolist() == [196, 197, 198, 199]


def test_a_plugins_numbers_are_those_of_the_images_kept() -> None:
    labels = np.repeat([0, 1], 20)
    made = make(config(PLUGIN, 2, imbalance=20, case="good"), image_set(labels))
    retained = sorted(np.concatenate(made.clients))
    assert retained[:20] == list(range(20))
    assert len(retained) == 21


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("overlap", r"gave image 5 2 times, to clients \[1, 2\]; an image belongs to one client"),
        ("empty", r"left 2 of 4 clients without images \(1, 3\); lower partition\.clients"),
        ("beyond", r"gave client 0 images 0 to 200, not 0 to 199"),
        ("negative", r"gave client 0 images -1 to 196, not 0 to 199"),
        ("floats", r"gave client 0 float64 \[50\]; it must be whole numbers \[n\]"),
        ("square", r"gave client 0 int64 \[2, 25\]; it must be whole numbers \[n\]"),
        ("short", r"must return a list of 4 index arrays, one per client, not 3"),
        ("none", r"must return a list of 4 index arrays, one per client, not NoneType"),
    ],
)
def test_a_plugins_unusable_result_is_named(case: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"\[partition\] use = '{PLUGIN}' {message}"):
        make(config(PLUGIN, case=case))


def test_a_plugin_that_fails_is_named() -> None:
    with pytest.raises(PluginError, match=rf"\[partition\] use = '{PLUGIN}' failed: no idea"):
        make(config(PLUGIN, case="fails"))


def test_ten_empty_clients_are_not_all_listed() -> None:
    with pytest.raises(DataError, match=r"left 6 of 10 clients .* \(4, 5, 6, 7, 8, \.\.\.\)"):
        checks.check_list([[k] if k < 4 else [] for k in range(10)], 10, "x")


def test_a_data_set_without_training_images_is_refused() -> None:
    with pytest.raises(DataError, match="there is no training image"):
        make(config(), image_set([]))


@pytest.mark.parametrize(("labels", "found"), [([0, 4], "0 to 4"), ([-1, 2], "-1 to 2")])
def test_labels_out_of_range_are_refused(labels: list[int], found: str) -> None:
    with pytest.raises(DataError, match=f"labels must be 0 to 3, but there are {found}"):
        make(config(), image_set(labels))


class Windows:
    """A plug-in's lazy sequence: client k has three images in a row, from image 2 k on."""

    def __init__(self, images: int, clients: int, stated: Any) -> None:
        self.images, self.clients = images, clients
        if stated is not None:
            self.expected_counts = stated

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, client: int) -> Any:
        return (2 * client + np.arange(3)) % self.images


def lazy_plugin(*, stated: Any = None) -> Any:
    def partition(labels: Any, clients: int, rng: np.random.Generator) -> Windows:
        return Windows(len(labels), clients, stated)

    return partition


LAZY = f"{__name__}:lazy_plugin"


def test_a_lazy_split_holds_no_clients_and_expects_its_counts() -> None:
    made = make(config("population", 1_000_000, imbalance=8, alpha=0.5, mean_images=5))
    assert (len(made.clients), made.lazy, made.sampled, made.exact) == (1_000_000, True, True, False)
    # 50, 25, 12 and 6 images are kept of 200; five million are spread in their proportion.
    np.testing.assert_allclose(made.totals, np.array([50, 25, 12, 6]) * 5e6 / 93, atol=1)
    assert len(made.left_out) == 200 - 93
    assert not np.isin(made.left_out, np.concatenate([made.clients[int(k)] for k in made.shown])).any()
    queried = [7, 999_999, 7]
    counts = made.counts(queried)
    for row, client in zip(counts, queried, strict=True):
        assert row.tolist() == np.bincount(LABELS[made.clients[client]], minlength=4).tolist()


def test_a_lazy_splits_digest_depends_on_all_that_decides_it() -> None:
    def digest(settings: PartitionConfig, labels: Any = LABELS, seed: int = 3) -> str:
        return make(settings, image_set(labels), seed).digest

    def population(clients: int = 500, alpha: float = 0.5, imbalance: float = 1.0) -> PartitionConfig:
        return config("population", clients, imbalance, alpha=alpha, mean_images=5)

    digests = {
        digest(population()),
        digest(population(501)),
        digest(population(alpha=0.25)),
        digest(population(imbalance=2)),
        digest(population(), seed=4),
        digest(population(), LABELS[::-1]),
        digest(config(LAZY, 500)),
    }
    assert len(digests) == 7
    assert digest(population()) in digests


def test_counts_of_a_lazy_plug_in_are_stated_estimated_or_counted() -> None:
    stated = make(config(LAZY, 5000, stated=[5, 1.5, 2.75]))
    # Each is rounded alone; class 3 has images, so it cannot be expected nowhere.
    assert (stated.totals.tolist(), stated.exact) == ([5, 2, 3, 1], False)
    estimated = make(config(LAZY, 8000))
    assert abs(int(estimated.totals.sum()) - 24_000) <= 1
    # Of every two neighbours one begins with class 0 and one with class 2: 2 of 6 images are 0, 1 is 1, ...
    np.testing.assert_allclose(estimated.totals, [8000, 4000, 8000, 4000], rtol=0.1)
    counted = make(config(LAZY, 100))
    assert (counted.totals.tolist(), counted.exact, counted.sampled) == ([100, 50, 100, 50], True, False)


@pytest.mark.parametrize("stated", [[1, 2, 3, 4, 5], [1, -1], [float("nan")], [[1, 2]], ["a"]])
def test_unusable_expected_counts_are_named(stated: Any) -> None:
    message = (
        rf"use = '{LAZY}': expected_counts must be at most 4 finite numbers >= 0, one for each class, not"
    )
    with pytest.raises(DataError, match=message):
        make(config(LAZY, 5000, stated=stated))


def test_facts_are_small_for_many_clients_and_whole_for_few() -> None:
    few = make(config()).facts("abcd")
    assert list(few) == ["digest", "classes", "counts", "left_out"]
    assert few["counts"].shape == (4, 4)
    for made in (
        make(config("population", 1_000_000, alpha=1, mean_images=2)),
        make(config(clients=10_001), image_set(np.arange(20_000) % 4)),
    ):
        facts = made.facts("abcd")
        assert facts["clients"] == len(made.clients)
        assert facts["counts"].shape == (100, 4)
        assert facts["shown"].tolist() == sorted(set(made.shown.tolist()))
        assert facts["shown"].max() > 9000
        assert facts["totals"].sum() == (20_000 if made.exact else 2_000_000)
        assert (facts["counts"] == made.counts(made.shown)).all()


def test_a_list_is_shown_whole_up_to_ten_thousand_clients() -> None:
    made = make(config(clients=10_000), image_set(np.arange(20_000) % 4))
    assert not made.sampled
    assert made.facts("abcd")["counts"].shape == (10_000, 4)
