"""Every partition is disjoint, complete and repeatable; each one has the skew of its paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedvision import registry
from fedvision.data.partition import partitioners
from fedvision.errors import DataError, PluginError
from fedvision.types import PluginSpec
from tests.work import lines_of

Labels = NDArray[np.int64]
BALANCED = np.repeat(np.arange(10), 600)


def split(make: Any, labels: Labels, clients: int, seed: int = 0) -> list[Labels]:
    parts: list[Labels] = make(labels, clients, np.random.default_rng(seed))
    return parts


def table(parts: list[Labels], labels: Labels) -> Labels:
    """Return images of each class on each client, counted one by one."""
    classes = int(labels.max()) + 1
    return np.array([[int((labels[part] == c).sum()) for c in range(classes)] for part in parts])


def whole(parts: list[Labels], images: int) -> bool:
    return sorted(np.concatenate(parts).tolist()) == list(range(images))


FACTORIES: dict[str, Callable[[Labels, int], Any]] = {
    "iid": lambda labels, clients: partitioners.iid(),
    "dirichlet": lambda labels, clients: partitioners.dirichlet(alpha=0.3),
    "dirichlet full": lambda labels, clients: partitioners.dirichlet(
        alpha=0.05, min_per_client=len(labels) // clients
    ),
    "shards": lambda labels, clients: partitioners.shards(
        classes_per_client=max(2, -(-len(np.unique(labels)) // clients))
    ),
    "quantity": lambda labels, clients: partitioners.quantity(exponent=1.5),
    "column": lambda labels, clients: partitioners.column(
        name="place", columns={"place": np.arange(len(labels)) % clients}
    ),
}


@pytest.mark.parametrize("name", FACTORIES)
@settings(max_examples=60)
@example(labels=[0], share=1.0, seed=0)
@example(labels=[3, 3, 3, 3], share=1.0, seed=1)
@example(labels=[5, 5, 5, 0, 0, 2], share=1.0, seed=2)
@given(
    labels=st.lists(st.integers(0, 7), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_every_partition_is_disjoint_complete_sorted_and_repeatable(
    name: str, labels: list[int], share: float, seed: int
) -> None:
    images = np.array(labels, np.int64)
    clients = max(1, round(share * len(labels)))
    make = FACTORIES[name](images, clients)
    parts = split(make, images, clients, seed)
    assert len(parts) == clients
    assert whole(parts, len(labels))
    assert all(len(part) >= 1 and part.dtype == np.int64 for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    for part, again in zip(parts, split(make, images, clients, seed), strict=True):
        np.testing.assert_array_equal(part, again)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "quantity"])
def test_another_generator_makes_another_split(name: str) -> None:
    make = FACTORIES[name](BALANCED, 20)
    one, other = split(make, BALANCED, 20, 0), split(make, BALANCED, 20, 1)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "quantity"])
def test_images_of_a_class_are_chosen_at_random(name: str) -> None:
    labels = np.zeros(100, np.int64)
    parts = split(FACTORIES[name](labels, 2), labels, 2)
    # In the order of the images the first client would hold a run of neighbours, or every second image.
    assert all(len(set(np.diff(part))) > 1 for part in parts if len(part) > 9)


def test_iid_sizes_differ_by_one_and_classes_hardly() -> None:
    counts = table(split(partitioners.iid(), BALANCED, 7), BALANCED)
    assert set(counts.sum(axis=1)) == {857, 858}
    # 600 images of a class over 7 clients: a hypergeometric count of 86 +- 8.6.
    assert np.abs(counts - 600 / 7).max() < 40


def test_dirichlet_shares_have_the_moments_of_the_dirichlet_distribution() -> None:
    labels = np.repeat(np.arange(500), 200)
    shares = table(split(partitioners.dirichlet(alpha=0.5), labels, 2), labels)[0] / 200
    # With two clients the share is Beta(1/2, 1/2): mean 1/2, variance 1/8; 500 draws.
    assert abs(shares.mean() - 0.5) < 0.05
    assert abs(shares.var() - 0.125) < 0.02


def test_dirichlet_limits_of_alpha() -> None:
    """Dirichlet becomes even for a large alpha and single class for a small one."""
    even = table(split(partitioners.dirichlet(alpha=1e12), BALANCED, 7), BALANCED)
    assert set(even.flatten()) <= {85, 86}
    skewed = table(split(partitioners.dirichlet(alpha=1e-12), BALANCED, 4), BALANCED)
    assert ((skewed >= 599).sum(axis=0) == 1).all()


def test_dealing_is_off_by_less_than_one_image_and_right_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.05, 0.5, 0.0, 0.25, 0.2])
    dealt = np.array([np.bincount(partitioners._deal(7, shares, rng), minlength=5) for _ in range(4000)])
    assert (dealt.sum(axis=1) == 7).all()
    assert np.abs(dealt - 7 * shares).max() < 1
    np.testing.assert_allclose(dealt.mean(axis=0), 7 * shares, atol=0.03)


def test_small_clients_are_filled_from_the_largest_and_nothing_else_moves() -> None:
    owner = np.repeat(np.arange(5), [50, 0, 30, 12, 2])
    filled = partitioners._fill(owner, 5, 10, np.random.default_rng(0))
    assert np.bincount(filled).tolist() == [32, 10, 30, 12, 10]
    assert (filled[owner == 2] == 2).all()
    assert (filled[owner == 4] == 4).all()


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), share=st.floats(0, 1))
def test_levelling_takes_from_the_largest_again_and_again(sizes: list[int], share: float) -> None:
    minimum = int(share * (sum(sizes) // len(sizes)))
    expected = list(sizes)
    while min(expected) < minimum:
        expected[expected.index(max(expected))] -= 1
        expected[expected.index(min(expected))] += 1
    assert sorted(partitioners._level(np.array(sizes), minimum)) == sorted(expected)


def test_minimum_is_kept_where_dirichlet_alone_would_leave_clients_empty() -> None:
    labels = np.repeat(np.arange(10), 100)
    parts = split(partitioners.dirichlet(alpha=0.01, min_per_client=8), labels, 100)
    assert min(map(len, parts)) == 8
    assert whole(parts, 1000)


def test_shards_of_balanced_classes_are_mcmahans() -> None:
    counts = table(split(partitioners.shards(classes_per_client=2), BALANCED, 50), BALANCED)
    assert (counts.sum(axis=1) == 120).all()
    assert set(counts.flatten()) == {0, 60, 120}


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=2, max_size=8).filter(any),
    clients=st.integers(1, 12),
    k=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_shards_never_give_a_client_more_classes_than_configured(
    sizes: list[int], clients: int, k: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    if clients > len(labels) or clients * k < np.count_nonzero(sizes):
        with pytest.raises(DataError, match=r"partition\.clients = "):
            split(partitioners.shards(classes_per_client=k), labels, clients, seed)
        return
    counts = table(split(partitioners.shards(classes_per_client=k), labels, clients, seed), labels)
    assert np.count_nonzero(counts, axis=1).max() <= k


def test_quantity_is_a_power_law_of_sizes_with_the_same_mixture() -> None:
    counts = table(split(partitioners.quantity(exponent=1.0), BALANCED, 4), BALANCED)
    # 6000 images in the ratio 1 : 1/2 : 1/3 : 1/4, which sum to 25/12.
    assert counts.sum(axis=1).tolist() == [2880, 1440, 960, 720]
    assert np.abs(counts[0] - 288).max() < 60
    equal = split(partitioners.quantity(exponent=0), BALANCED, 7)
    assert {len(part) for part in equal} == {857, 858}


def test_quantity_lifts_the_smallest_and_lowers_the_largest() -> None:
    labels = np.zeros(100, np.int64)
    sizes = [len(part) for part in split(partitioners.quantity(exponent=3, min_per_client=5), labels, 4)]
    # Alone: 84.95, 10.62, 3.15 and 1.33 images, by largest remainders 85, 11, 3 and 1.
    assert sizes == [79, 11, 5, 5]


def test_column_makes_one_client_of_each_value_in_sorted_order() -> None:
    place = np.array(["rome", "oslo", "rome", "bern", "oslo"])
    make = partitioners.column(name="place", columns={"place": place, "year": np.arange(5)})
    parts = split(make, np.zeros(5, np.int64), 3)
    assert [part.tolist() for part in parts] == [[3], [1, 4], [0, 2]]
    assert isinstance(make, partitioners.ByColumn)
    assert make.clients == 3


def test_merged_values_stay_whole_and_make_clients_of_about_equal_size() -> None:
    writer = np.repeat([f"w{i}" for i in range(7)], [40, 30, 20, 15, 10, 5, 5])
    make = partitioners.column(name="writer", columns={"writer": writer}, merge=True)
    parts = split(make, np.zeros(len(writer), np.int64), 3)
    assert sorted(len(part) for part in parts) == [40, 40, 45]
    owners = [set(writer[part].tolist()) for part in parts]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 7
    with pytest.raises(
        DataError, match="clients = 8, but column 'writer' has 7 values to merge; write 1 to 7"
    ):
        split(make, np.zeros(len(writer), np.int64), 8)


def test_numbers_in_a_column_are_clients_by_value() -> None:
    place = np.array(["10", "9", "10"])
    make = partitioners.column(name="place", columns={"place": place})
    assert [part.tolist() for part in split(make, np.zeros(3, np.int64), 2)] == [[1], [0, 2]]


@pytest.mark.parametrize("value", ["", "nan", "NA"])
def test_an_empty_cell_is_no_client(value: str) -> None:
    place = np.array(["rome", value, "oslo", value])
    with pytest.raises(
        DataError, match=rf"column 'place' is '{value}' for 2 of 4 images, the first of them num"
    ):
        partitioners.column(name="place", columns={"place": place})
    with pytest.raises(DataError, match="'nan' for 1 of 2 images"):
        partitioners.column(name="place", columns={"place": np.array([1.0, np.nan])})


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "quantity"])
def test_too_many_clients_name_the_key_and_the_remedy(name: str) -> None:
    make = FACTORIES[name](np.zeros(6, np.int64), 2)
    with pytest.raises(DataError, match=r"^partition\.clients = 7 is more than the 6 images; lower it$"):
        split(make, np.zeros(6, np.int64), 7)
    with pytest.raises(DataError, match=r"partition\.clients must be >= 1, not 0"):
        split(make, np.zeros(6, np.int64), 0)


@pytest.mark.parametrize(
    "make", [partitioners.dirichlet(alpha=1, min_per_client=4), partitioners.quantity(min_per_client=4)]
)
def test_a_minimum_that_cannot_be_met_names_both_numbers(make: Any) -> None:
    with pytest.raises(
        DataError, match=r"min_per_client = 4 for 3 clients is more than the 11 images; lower"
    ):
        split(make, np.zeros(11, np.int64), 3)
    assert [len(part) for part in split(make, np.zeros(12, np.int64), 3)] == [4, 4, 4]


@pytest.mark.parametrize(
    ("use", "arguments", "message"),
    [
        ("dirichlet", {"alpha": 0}, "alpha must be > 0, not 0"),
        ("dirichlet", {"alpha": -1.0}, "alpha must be > 0, not -1.0"),
        ("dirichlet", {"alpha": float("nan")}, "alpha must be > 0, not nan"),
        ("dirichlet", {"alpha": float("inf")}, "alpha must be > 0 and finite, not inf"),
        ("dirichlet", {"alpha": 1, "min_per_client": 0}, "min_per_client must be >= 1, not 0"),
        ("shards", {"classes_per_client": 0}, "classes_per_client must be >= 1, not 0"),
        ("quantity", {"exponent": -0.5}, "exponent must be >= 0, not -0.5"),
        ("column", {"name": "plaice"}, "there is no column 'plaice'; there are: place, year"),
        ("column", {"name": "mixed"}, "column 'mixed' mixes kinds of values"),
    ],
)
def test_an_argument_out_of_range_names_its_place(use: str, arguments: dict[str, Any], message: str) -> None:
    columns: dict[str, Any] = {"place": np.arange(3), "year": np.arange(3)}
    if arguments.get("name") == "mixed":
        columns["mixed"] = np.array([1, "a", None], dtype=object)
    with pytest.raises(PluginError, match=rf"\[partition\] use = '{use}': {message}"):
        registry.build("partition", PluginSpec(use=use, args=arguments), columns=columns)


def test_columns_are_the_programs_and_never_the_experiments() -> None:
    with pytest.raises(PluginError, match="takes no key 'columns'"):
        registry.build("partition", PluginSpec(use="column", args={"name": "a", "columns": 3}), columns={})
    with pytest.raises(PluginError, match="these images have no columns"):
        registry.build("partition", PluginSpec(use="column", args={"name": "a"}), columns={})


def test_a_column_that_does_not_fit_names_the_right_number() -> None:
    make = partitioners.column(name="place", columns={"place": np.array([1, 2, 2])})
    with pytest.raises(DataError, match=r"partition\.clients = 5, but column 'place' has 2 values; write cl"):
        split(make, np.zeros(3, np.int64), 5)
    with pytest.raises(DataError, match="column 'place' has 3 rows for 4 images"):
        split(make, np.zeros(4, np.int64), 2)


@pytest.mark.parametrize("name", FACTORIES)
def test_ten_thousand_clients_are_spread_at_once(name: str) -> None:
    labels = np.repeat(np.arange(10), 6000)
    make = FACTORIES[name](labels, 10_000)
    # 0.02 s on one core, and not a line for each client.
    parts: list[Any] = []
    assert lines_of(lambda: parts.extend(split(make, labels, 10_000))) < 1000
    assert len(parts) == 10_000
