"""A population's clients are functions of seed and number; mixtures and sizes have the moments promised."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedvision import registry
from fedvision.data.partition.population import Population, Sizes, population
from fedvision.errors import DataError, PluginError
from fedvision.types import PluginSpec

Labels = NDArray[np.int64]
UNEVEN = np.repeat([0, 1, 3], [600, 300, 100])


def made(labels: Labels = UNEVEN, clients: int = 1000, seed: int = 0, **args: Any) -> Population:
    parts: Any = population(**{"alpha": 0.5, **args})(labels, clients, np.random.default_rng(seed))
    return parts  # type: ignore[no-any-return]


@settings(max_examples=60)
@example(labels=[2], alpha=0.1, mean=1.0, sigma=0.0, seed=0, first=0, second=0)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    alpha=st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 1e3, 1e9]),
    mean=st.floats(0, 1),
    sigma=st.floats(0, 10),
    seed=st.integers(0, 2**32),
    first=st.integers(0, 999_999),
    second=st.integers(0, 999_999),
)
def test_a_client_is_independent_of_the_order_of_access(
    labels: list[int], alpha: float, mean: float, sigma: float, seed: int, first: int, second: int
) -> None:
    images = np.array(labels, np.int64)
    args = {"alpha": alpha, "mean_images": 1 + mean * (len(images) - 1), "sigma": sigma}
    one, other = (made(images, 1_000_000, seed, **args) for _ in range(2))
    before = [one[first], one[second]]
    after = [pickle.loads(pickle.dumps(other))[second], other[first]]
    for part, again in zip(before, after[::-1], strict=True):
        np.testing.assert_array_equal(part, again)
        assert part.dtype == np.int64
        assert 1 <= len(part) <= len(images)
        assert (np.diff(part) > 0).all()
        assert 0 <= part[0]
        assert part[-1] < len(images)


def test_the_bits_of_a_client_are_pinned() -> None:
    parts = made(clients=1_000_000, mean_images=6)
    assert [parts[k].tolist() for k in (0, 1, 999_999)] == [[607, 902], [161, 274, 521], [6, 428]]


def test_sizes_without_making_clients() -> None:
    parts = made(clients=1_000_000, mean_images=6)
    assert [parts.size(k) for k in (0, 1, 2, 999_999)] == [len(parts[k]) for k in (0, 1, 2, 999_999)]


def test_another_seed_and_another_client_have_other_images() -> None:
    assert made(seed=0)[5].tolist() != made(seed=1)[5].tolist() != made(seed=1)[6].tolist()


def test_mixtures_have_the_data_sets_own_as_mean_and_dirichlets_variance() -> None:
    parts = made(clients=4000, alpha=0.5, mean_images=50, sigma=0)
    shares = np.array([np.bincount(UNEVEN[part], minlength=4) for part in parts_of(parts)]) / 50
    q = np.array([0.6, 0.3, 0.0, 0.1])
    # p ~ Dirichlet(a q) with a = 0.5 * 3 classes: var p = q (1 - q) / (a + 1); then 50 draws from it.
    variance = q * (1 - q) / 2.5
    variance += (q * (1 - q) - variance) / 50
    np.testing.assert_allclose(shares.mean(axis=0), q, atol=4 * 0.3 / 4000**0.5)
    np.testing.assert_allclose(shares.var(axis=0), variance, atol=0.006)
    assert set(shares.sum(axis=1).round(9)) == {1.0}


def test_expected_counts_are_what_clients_have_on_average() -> None:
    parts = made(clients=4000, alpha=2, mean_images=20, sigma=0.7)
    counts = np.array([np.bincount(UNEVEN[part], minlength=4) for part in parts_of(parts)])
    np.testing.assert_allclose(parts.expected_counts, [48000, 24000, 0, 8000])
    np.testing.assert_allclose(counts.sum(axis=0), parts.expected_counts, rtol=0.05)


def test_alpha_goes_from_one_class_to_the_data_sets_own_mixture() -> None:
    single = [len(np.unique(UNEVEN[part])) for part in parts_of(made(clients=200, alpha=1e-6, sigma=0))]
    assert set(single) == {1}
    even = made(np.repeat([0, 1], 5000), 50, alpha=1e9, mean_images=1000, sigma=0)
    share = [float((part >= 5000).mean()) for part in parts_of(even)]
    assert np.abs(np.array(share) - 0.5).max() < 0.07  # more than 4 deviations of a fair coin's 1000 throws


def test_class_too_small_for_its_share() -> None:
    """A class that is too small gives all it has and the others the rest."""
    labels = np.repeat([0, 1], [3, 500])
    for client in range(100):
        part = made(labels, 100, alpha=0.01, mean_images=40, sigma=0)[client]
        assert len(part) == 40
        assert (part < 3).sum() <= 3
    whole = made(labels, 3, mean_images=503)
    assert whole[2].tolist() == list(range(503))


@pytest.mark.slow
def test_every_image_of_a_class_is_drawn_equally_often() -> None:
    labels = np.repeat([0, 1], [20, 30])
    for mean in (8, 40):  # few of a class, drawn again where they meet; and most of it, shuffled
        parts = made(labels, 6000, alpha=1e6, mean_images=mean, sigma=0)
        times = np.bincount(np.concatenate(parts_of(parts)), minlength=50) / 6000
        np.testing.assert_allclose(times, mean / 50, atol=4.5 * (mean / 50 * (1 - mean / 50) / 6000) ** 0.5)


@given(
    lowest=st.integers(1, 50),
    span=st.integers(0, 5000),
    place=st.floats(0, 1),
    sigma=st.sampled_from([0.0, 0.01, 0.5, 1.0, 3.0, 10.0]),
)
def test_the_mean_size_after_the_cut_is_the_configured_one(
    lowest: int, span: int, place: float, sigma: float
) -> None:
    mean = lowest + place * span
    sizes = Sizes.with_mean(mean, sigma, lowest, lowest + span)
    assert sizes.mean == pytest.approx(mean, rel=1e-6)


def test_sizes_drawn_have_that_mean_and_stay_in_their_range() -> None:
    sizes = Sizes.with_mean(10.5, 1.0, 2, 40)
    drawn = np.array([sizes.draw(np.random.default_rng(k)) for k in range(20_000)])
    assert (drawn.min(), drawn.max()) == (2, 40)
    assert drawn.mean() == pytest.approx(10.5, abs=4 * drawn.std() / 20_000**0.5)
    # An uncut log-normal has its median at exp(-sigma^2 / 2) of the mean.
    free = Sizes.with_mean(100, 1.0, 1, 10**9)
    assert np.median([free.draw(np.random.default_rng(k)) for k in range(4000)]) == pytest.approx(61, abs=4)
    fixed = Sizes.with_mean(2.25, 0.0, 1, 9)
    assert {fixed.draw(np.random.default_rng(k)) for k in range(100)} == {2, 3}


def test_a_number_that_is_no_client_is_an_index_error() -> None:
    parts = made(clients=3)
    assert len(parts) == 3
    for client in (-1, 3):
        with pytest.raises(IndexError):
            parts[client]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0.0}, "alpha must be > 0, not 0.0"),
        ({"alpha": float("nan")}, "alpha must be > 0, not nan"),
        ({"sigma": -0.1}, "sigma must be >= 0 and <= 10, not -0.1"),
        ({"sigma": 11.0}, "sigma must be >= 0 and <= 10, not 11.0"),
        ({"min_images": 0}, "min_images must be >= 1, not 0"),
        ({"mean_images": "many"}, "mean_images must be float, not 'many'"),
        ({"mean_images": float("nan")}, "mean_images must be > 0, not nan"),
    ],
)
def test_an_argument_out_of_range_names_its_place(arguments: dict[str, Any], message: str) -> None:
    spec = PluginSpec(use="population", args={"alpha": 1.0, **arguments})
    with pytest.raises(PluginError, match=rf"\[partition\] use = 'population': {message}"):
        registry.build("partition", spec)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_images": 1001}, "max_images = 1001 is more than the 1000 images; a client has an image once"),
        ({"mean_images": 0.5}, "mean_images = 0.5 must lie between min_images = 1 and max_images = 1000"),
        ({"mean_images": 60, "max_images": 50}, "mean_images = 60 must lie between .* max_images = 50"),
        ({"min_images": 70}, "mean_images = 60.0 must lie between min_images = 70 and"),
    ],
)
def test_sizes_that_the_data_cannot_have_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"partition\.{message}"):
        made(**arguments)


def parts_of(parts: Population) -> list[Labels]:
    return [parts[client] for client in range(len(parts))]
